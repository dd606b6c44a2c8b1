"""The running fp32 model with some weights rounded, and what that does to its pooled vectors.

A weight is replaced by the values that its GGUF type would leave of it, so nothing is written and a
trial takes one pass over the texts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

from tierexport.base.errors import PlanError
from tierexport.base.records import Floats, Imatrix, Tensor, Text
from tierexport.formats.gguf import ggml
from tierexport.metrics.similarity import cosines
from tierexport.model.batches import length_sorted, prompt_for, token_ids
from tierexport.model.roles import gguf_name
from tierexport.quantize.importance import floored

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Bench:
    """A model, texts, and the vectors that the unchanged model makes of them, float32 (texts, dimensions)."""

    def __init__(
        self, model: "SentenceTransformer", texts: Sequence[Text], tensors: Iterable[Tensor], imatrix: Imatrix
    ) -> None:
        self.model, self._imatrix = model, imatrix
        self._places = _places(model, tensors)
        prompted = [prompt_for(model.prompts, text.kind) + text.text for text in texts]
        lengths = [len(ids) for ids in token_ids(model, prompted)]
        self._batches = [(rows, model.preprocess([prompted[row] for row in rows])) for rows in length_sorted(lengths)]
        self._order = np.argsort([row for rows, _ in self._batches for row in rows])
        self.reference = self.encode(model)

    def encode(self, model: "SentenceTransformer") -> Floats:
        """Vectors of the texts by this model, or a copy of it, as it is now."""
        import torch

        with torch.inference_mode():
            found = [model(dict(features))["sentence_embedding"].float().numpy() for _, features in self._batches]
        vectors = np.concatenate(found)
        return vectors[self._order]

    def damage(self, types: Mapping[str, str]) -> npt.NDArray[np.float64]:
        """1 − cosine to fp32 of each text, with the named tensors rounded to nearest at these native types."""
        with self.rounded(types):
            return self.loss(self.encode(self.model))

    def loss(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """1 − cosine to fp32 of each text's vector."""
        return 1 - cosines(self.reference, vectors)

    @contextmanager
    def rounded(self, types: Mapping[str, str]) -> Iterator[None]:
        """Inside, each named tensor holds what rounding it to nearest at its native type leaves of it."""
        import torch

        kept = [(parameter, parameter.data) for name in types for parameter in self._places[name]]
        try:
            for name, native in types.items():
                means = self._imatrix.means.get(name)
                for parameter in self._places[name]:
                    parameter.data = torch.from_numpy(_rounded(parameter.data.numpy(), native, means))
            yield
        finally:
            for parameter, values in kept:
                parameter.data = values


def _rounded(values: Floats, native: str, means: Floats | None) -> Floats:
    kind = gguf.GGMLQuantizationType[native]
    raw = np.concatenate(list(ggml.quantize(values, kind, None if means is None else floored(means))))
    found: Floats = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(values.shape)
    return found


def _places(model: "SentenceTransformer", tensors: Iterable[Tensor]) -> dict[str, list[Any]]:
    """The parameters that each GGUF tensor is made of. Raises PlanError where one can't be found."""
    parameters = dict(model.transformers_model.named_parameters())
    by_gguf = {gguf_name(name): parameter for name, parameter in parameters.items()}
    found = {}
    for tensor in tensors:
        ends = [parameter for name, parameter in parameters.items() if any(_same(name, source) for source in tensor.sources)]
        found[tensor.name] = [by_gguf[tensor.name]] if tensor.name in by_gguf else ends
        if not found[tensor.name]:
            raise PlanError(f"{tensor.name} can't be found in the running model, so its damage can't be measured")
    return found


def _same(name: str, source: str) -> bool:
    """Whether a parameter's name is a checkpoint's, which may carry a prefix more, or one less."""
    return name == source or name.endswith(f".{source}") or source.endswith(f".{name}")
