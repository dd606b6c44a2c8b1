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
from tierexport.base.workers import on_cores
from tierexport.formats.gguf import ggml
from tierexport.metrics.similarity import cosines
from tierexport.model.batches import Batch, batches, original_order, prompted
from tierexport.model.placement import parameters_of
from tierexport.quantize.floor import floored

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class TrialModel:
    """A model, texts, and the vectors that the unchanged model makes of them, float32 (texts, dimensions)."""

    def __init__(
        self, model: "SentenceTransformer", texts: Sequence[Text], tensors: Iterable[Tensor], imatrix: Imatrix
    ) -> None:
        """Raises PlanError where one of `tensors` can't be found in the model."""
        self.model, self._imatrix = model, imatrix
        self.parameters = _parameters(model, list(tensors))
        self._batches = list(batches(model, prompted(model.prompts, texts)))
        self._order = original_order(batch.rows for batch in self._batches)
        self.reference = self.encode(model)

    def encode(self, model: "SentenceTransformer") -> Floats:
        """Vectors of the texts, float32 (texts, dimensions), by this model, or a copy of it, as it is now."""
        import torch

        def vectors(batch: Batch) -> Floats:
            with torch.inference_mode():
                found: Floats = model(dict(batch.features))["sentence_embedding"].float().numpy()
            return found

        whole: Floats = np.concatenate(on_cores(vectors, self._batches))[self._order]
        return whole

    def sensitivity(self, types: Mapping[str, str]) -> npt.NDArray[np.float64]:
        """1 − cosine to fp32 of each text, with the named tensors rounded to nearest at these native types."""
        with self.rounded(types):
            return self.loss(self.encode(self.model))

    def loss(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """1 − cosine to fp32 of each text's vector, float64 (texts,)."""
        return 1 - cosines(self.reference, vectors)

    @contextmanager
    def rounded(self, types: Mapping[str, str]) -> Iterator[None]:
        """Inside, each named tensor holds what rounding it to nearest at its native type leaves of it."""
        import torch

        before = [(parameter, parameter.data) for name in types for parameter in self.parameters[name]]
        try:
            for name, native in types.items():
                means = self._imatrix.means.get(name)
                for parameter in self.parameters[name]:
                    parameter.data = torch.from_numpy(_rounded(parameter.data.numpy(), native, means))
            yield
        finally:
            for parameter, values in before:
                parameter.data = values


def _rounded(values: Floats, native: str, means: Floats | None) -> Floats:
    """What rounding to nearest at a GGUF type leaves of values, of the same shape; `means`: importance, (columns,)."""
    kind = gguf.GGMLQuantizationType[native]
    raw = np.concatenate(list(ggml.quantize(values, kind, None if means is None else floored(means))))
    found: Floats = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(values.shape)
    return found


def _parameters(model: "SentenceTransformer", tensors: Sequence[Tensor]) -> dict[str, list[Any]]:
    """The parameters that each GGUF tensor is made of. Raises PlanError where one can't be found."""
    parameters = dict(model.transformers_model.named_parameters())
    found = parameters_of(tensors, parameters)
    if missing := [name for name, names in found.items() if not names]:
        raise PlanError(f"{missing[0]} can't be found in the running model, so its sensitivity can't be measured")
    return {tensor: [parameters[name] for name in names] for tensor, names in found.items()}
