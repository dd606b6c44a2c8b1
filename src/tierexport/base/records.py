"""The frozen values that all stages share. Read this first, then `pipeline.py`.

    recipe.toml ─► Recipe ─┐
    model       ─► Source ─┼─► Plan ─► Importance ─► Artifact (gguf)    ─┐
                           │                    └──► Artifact (torchao) ─┼─► Verdict
                           └──────────► Reference (fp32 vectors) ────────┘

A Recipe is in `recipe.schema`; a Plan in `recipe.plan`, its tensors and an Artifact in `recipe.planned`; a Verdict in
`artifact.verdicts`. All else that is drawn, and what goes between, is here: a model and its tensors, texts and retrieval
sets, importance, and what a reader makes of texts.

Nothing here computes more than a sum, opens a file or imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def bits_per_parameter(size: int, parameters: int) -> float:
    """Bits that each parameter takes of `size` bytes."""
    return 8 * size / max(parameters, 1)


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
    sentence-transformers' name; `normalizes`: whether it puts out vectors of unit length. `default_prompt` is what
    sentence-transformers' `encode` puts before a text where no prompt is asked for; a query or a passage has its own.
    `sketched`: the folder was laid out from a description alone (`model.sketch`), without tokenizer and weights: enough for a
    plan.

    Two things are told of how it was read. `remarks` are for whoever runs a build here: where the model's files contradict
    its description or themselves, and what holds; they are logged, and kept nowhere. `note` is for everybody who gets an
    artifact as well: what the source's card leaves unsaid because it can't be read (licence, languages); it is in
    manifest.json and on the artifact's card.
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
    default_prompt: str = ""
    note: str | None = None
    sketched: bool = False

    @property
    def licence(self) -> str | None:
        """The licence in one text."""
        return str(self.terms) or None

    @property
    def shared_spec(self) -> str:
        """What others can name it by: for a folder of this machine its place on a hub, or the folder's name alone."""
        if self.revision is not None:
            return self.spec
        return self.base_model or Path(self.spec).name or self.name


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
class Text:
    """A calibration text: `kind` is "query" or "passage" and selects the prompt; `language`: its code, if it is known."""

    text: str
    kind: str
    language: str = ""


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
class RetrievalSet:
    """A BEIR set: documents, the queries that are judged, and their grades per document.

    Everything is in one order: row n of the documents' vectors belongs to `document_ids[n]`. `own` are the queries that
    stand among the documents under their own id and with their own text: that document is not an answer to its query.
    Documents that were read from files lie on the disk (`datasets.stored_texts`). `odd` says what was unusual in the files
    and how often, as "1 empty document".
    """

    name: str
    document_ids: tuple[str, ...]
    documents: Sequence[str]
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
