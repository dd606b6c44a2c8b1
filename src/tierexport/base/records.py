"""The frozen values that pass between the stages. Read this first, then `pipeline.py`.

    recipe.toml ─► Recipe ─┐
    model       ─► Source ─┼─► Plan ─► Importance ─► Artifact (gguf)    ─┐
                           │                    └──► Artifact (torchao) ─┼─► Verdict
                           └──────────► Reference (fp32 vectors) ────────┘

Nothing here computes more than a sum, opens a file or imports torch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Licence:
    """What a source may be used under, as its card or description states it: identifiers, and the name and link of one
    that has no identifier.
    """

    identifiers: tuple[str, ...] = ()
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return ", ".join(self.identifiers) or self.name or ""


@dataclass(frozen=True)
class Source:
    """A model whose files lie in a local folder, checked but not yet read.

    `digest` covers every file that can change a vector, and what the model description adds. `pooling` is a mode of
    sentence-transformers, or several ("cls and mean"). `similarity` is by what its vectors are compared, by
    sentence-transformers' name; `normalizes`: whether it puts out vectors of unit length. `remarks`: what its user should
    know of how it was read; `note`: what users have to be told of its card.
    """

    spec: str
    name: str
    path: Path
    revision: str | None
    digest: str
    architecture: str
    layers: int
    pooling: str
    max_tokens: int | None
    prompts: Mapping[str, str]
    terms: Licence
    base_model: str | None
    languages: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    similarity: str = "cosine"
    normalizes: bool = True
    note: str | None = None

    @property
    def licence(self) -> str | None:
        """The licence in one text."""
        return str(self.terms) or None

    @property
    def shared_spec(self) -> str:
        """What others can name it by: for a folder of this machine, its place on a hub, where that is known."""
        return self.base_model if self.base_model and self.revision is None else self.spec


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model as one format stores it.

    `sources` are the Hugging Face names it comes from; `layer` is None outside the stack;
    `shape` is in torch's order (rows, columns).
    """

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def as_json(self) -> dict[str, Any]:
        """Its name, role, layer and shape."""
        return {"name": self.name, "role": self.role, "layer": self.layer, "shape": list(self.shape)}


@dataclass(frozen=True)
class Tier:
    """How precisely a class of tensors is kept.

    `types` and `fallback` name a native type per format ("gguf", "torchao"), where the recipe does.
    """

    name: str
    bits: int
    types: Mapping[str, str] = field(default_factory=dict)
    fallback: Mapping[str, str] = field(default_factory=dict)


UNQUANTIZED = Tier("kept", 32)
"""Norms, biases, position and type tables: too few to matter in bytes, so fp32 in every format."""


@dataclass(frozen=True)
class Rule:
    """Claims for `tier` every tensor that meets all of the conditions which are set."""

    tier: str
    layers: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{key} = {', '.join(values)}"
            for key, values in (("layers", self.layers), ("roles", self.roles), ("names", self.names))
            if values
        ]
        return f"{self.tier} ({'; '.join(parts)})"


@dataclass(frozen=True)
class CalibrationSettings:
    """Which texts importance is measured on. `imatrix`, when set, replaces the measurement."""

    texts: str = "builtin"
    count: int = 400
    imatrix: str | None = None


@dataclass(frozen=True)
class TorchaoSettings:
    """How 4-bit values are stored ("portable" or "packed") and how many share a scale."""

    layout: str = "portable"
    group_size: int = 32


LEVELS = ("int8", "int4", "trinary", "binary")
"""How precisely a vector's dimension may be stored."""

WIDEST = 16
"""So many times as many dimensions a vector may be stored in; binary then takes half of what fp32 does."""

SCALINGS = ("rolling", "minmax", "clip")
"""How a codec's bounds may be chosen."""


@dataclass(frozen=True)
class VectorSettings:
    """How the vectors that artifacts put out are stored: a level, with bounds fitted on the calibration texts, or the codec
    in a file. `widen` is how many times as many dimensions are stored; `asymmetric` leaves queries as they are.
    """

    level: str = ""
    codec: str | None = None
    scaling: str = "rolling"
    per_vector: bool = False
    rotate: bool = False
    widen: int = 1
    asymmetric: bool = False


FIDELITY_GATES = ("tokens_share", "cos_mean", "cos_p1", "cos_min", "top10_retention", "rank_correlation")
RETRIEVAL_GATES = {
    "ndcg_at_10": "ndcg_at_10",
    "recall_at_10": "recall_at_10",
    "mrr_at_10": "mrr_at_10",
    "ndcg_delta": "delta",
    "ndcg_delta_ci_low": "ci_low",
}
"""What a gate may be about: a figure of the verdict, or of each of its retrieval sets."""

STORED = "stored_"
"""Begins a gate that is about the vectors as they are stored, quantized."""


@dataclass(frozen=True)
class Gate:
    """A limit that an artifact has to keep: `top10_retention >= 0.97`."""

    metric: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.limit:g}"


@dataclass(frozen=True)
class VerifySettings:
    """What artifacts are verified on (retrieval sets, an STS file), and what they have to reach."""

    data: tuple[str, ...] = ()
    sts: str | None = None
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What the user declares. `folder` is where relative paths in it start."""

    name: str
    description: str
    model: str
    base_model: str | None
    tiers: Mapping[str, Tier]
    rules: tuple[Rule, ...]
    formats: tuple[str, ...]
    rounding: str
    calibration: CalibrationSettings
    torchao: TorchaoSettings
    verify: VerifySettings
    vectors: VectorSettings | None
    folder: Path
    document: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedTensor:
    """One row of the plan: a tensor, its tier, the native type and bytes it gets, and how it is rounded to it."""

    tensor: Tensor
    tier: Tier
    type: str
    bytes: int
    rounding: str = "nearest"
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as `plan --json` and manifest.json show it."""
        return {
            **self.tensor.as_json(),
            "tier": self.tier.name,
            "type": self.type,
            "bytes": self.bytes,
            "rounding": self.rounding,
            "note": self.note,
        }


@dataclass(frozen=True)
class FormatPlan:
    """What one format will hold."""

    format: str
    rows: tuple[PlannedTensor, ...]

    def carried_out(self, nearest: Collection[str], tuned: bool) -> "FormatPlan":
        """The plan as it turned out: the tensors that error feedback gained nothing for, and whether tuning gained anything."""

        def done(row: PlannedTensor) -> PlannedTensor:
            if row.tensor.name in nearest:
                return replace(row, rounding="nearest", note="error feedback gained nothing")
            return replace(row, rounding="gptq") if row.rounding == "distill" and not tuned else row

        return replace(self, rows=tuple(map(done, self.rows)))

    @property
    def feeds_back(self) -> bool:
        """Whether anything is rounded with error feedback."""
        return any(row.rounding != "nearest" for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.tensor.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors alone, without header and padding."""
        return sum(row.bytes for row in self.rows)

    @property
    def nominal_bits(self) -> float:
        """Mean of the tiers' bits over all parameters."""
        return sum(row.tier.bits * row.tensor.parameters for row in self.rows) / max(self.parameters, 1)

    @property
    def tensor_bits(self) -> float:
        """Bits per parameter of the tensors alone."""
        return 8 * self.bytes / max(self.parameters, 1)

    def as_json(self) -> dict[str, Any]:
        """Totals and rows as `plan --json` shows them."""
        return {
            "format": self.format,
            "parameters": self.parameters,
            "tensor_bytes": self.bytes,
            "nominal_bits": self.nominal_bits,
            "tensor_bits": self.tensor_bits,
            "tensors": [row.as_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Text:
    """A calibration text: `kind` is "query" or "passage" and selects the model's prompt."""

    text: str
    kind: str


@dataclass(frozen=True)
class TextSet:
    """Calibration texts; `digest` is a name that changes when any of them does."""

    texts: tuple[Text, ...]
    digest: str


@dataclass(frozen=True)
class Importance:
    """Sum of squared inputs per column, and the number of token rows, for each Linear.

    `sums[name]` is float64 of shape (columns,), keyed by the Hugging Face weight's name;
    `counts[name]` the rows that were summed.
    """

    sums: Mapping[str, npt.NDArray[np.float64]]
    counts: Mapping[str, int]
    texts: int
    dataset: str


@dataclass(frozen=True)
class Imatrix:
    """Mean squared input per column for GGUF tensors: float32 (columns,) or (experts·columns,)."""

    means: Mapping[str, Floats]
    dataset: str
    chunks: int
    path: Path | None = None


NO_IMATRIX = Imatrix({}, "", 0)
"""Where nothing is rounded by importance."""


@dataclass(frozen=True)
class Artifact:
    """A written file or folder. `bytes` are those of its weight files on disk."""

    format: str
    path: Path
    bytes: int
    plan: FormatPlan

    @property
    def stored_bits(self) -> float:
        return 8 * self.bytes / self.plan.parameters


@dataclass(frozen=True)
class RetrievalSet:
    """A BEIR set: documents, the queries that are judged, and their grades per document.

    Everything is in one order: row n of the documents' vectors belongs to `document_ids[n]`. `own` are the queries that
    stand among the documents under their own id and with their own text: that document is not an answer to its query.
    `odd` says what was unusual in the files and how often, as "1 empty document".
    """

    name: str
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    qrels: Mapping[str, Mapping[str, int]]
    own: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """What a reader made of texts; the arrays may be memory maps of files.

    `lengths` int64 (texts,): tokens of each text; `tokens` int32 (sum of lengths,): their ids, text
    after text; `vectors` float32 (texts, dimensions); `seconds`: how long encoding took, without
    loading the model.
    """

    lengths: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    vectors: Floats
    seconds: float

    @property
    def texts_per_second(self) -> float:
        """Speed of encoding."""
        return len(self.lengths) / max(self.seconds, 1e-9)

    def ids(self, text: int) -> list[int]:
        """The token ids of one text."""
        end = int(self.lengths[: text + 1].sum())
        return [int(token) for token in self.tokens[end - int(self.lengths[text]) : end]]
