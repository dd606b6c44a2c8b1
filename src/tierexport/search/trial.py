"""The running fp32 model with some weights rounded, and what that does to its pooled vectors.

A weight is replaced by the values that its native type would leave of it, so nothing is written and a
trial takes one pass over the texts.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import PlanError
from tierexport.base.records import Floats, Imatrix, Tensor, Text
from tierexport.base.workers import on_cores
from tierexport.formats.choices import Choices
from tierexport.metrics.similarity import cosines, normalized
from tierexport.model.batches import Batch, batches, original_order, prompted
from tierexport.model.placement import RowPlacement, parameters_of, row_placements

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer


Rows = Mapping[str, "torch.Tensor"]
"""New values of tensors, by name: float32, as `Tensor.shape`."""


class TrialModel:
    """A model, texts, and the vectors that the unchanged model makes of them, float32 (texts, dimensions).

    `parameters`: all of the model's, by name; `places`: where in them the rows of each tensor lie.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        texts: Sequence[Text],
        tensors: Iterable[Tensor],
        imatrix: Imatrix,
        choices: Choices,
        unquantized: Mapping[str, Floats],
    ) -> None:
        """`choices`: how tensors are rounded; `unquantized`: its `fp32`. Raises PlanError where one of `tensors` can't be found
        in the model.
        """
        self.model, self.choices, self._imatrix = model, choices, imatrix
        self.parameters = _parameters(model)
        self.places = _places(self.parameters, list(tensors), unquantized)
        self._batches = list(batches(model, prompted(model.prompts, texts)))
        self._order = original_order(batch.rows for batch in self._batches)
        self._here = threading.local()  # which batch a worker is at
        self.reference = self.encode(model)

    def encode(self, model: "SentenceTransformer") -> Floats:
        """Vectors of the texts, float32 (texts, dimensions), by this model, or a copy of it, as it is now."""
        import torch

        def vectors(numbered: tuple[int, Batch]) -> Floats:
            self._here.batch, batch = numbered
            with torch.inference_mode():
                found: Floats = model(dict(batch.features))["sentence_embedding"].float().numpy()
            return found

        whole: Floats = np.concatenate(on_cores(vectors, enumerate(self._batches)))[self._order]
        return whole

    @contextmanager
    def beyond(self, layers: "Sequence[torch.nn.Module]") -> Iterator[None]:
        """Inside, the first layers of the model, these, are not run again: what they put out is kept."""
        if not layers:
            yield
            return
        kept: dict[int, Any] = {}
        run = layers[-1].forward

        def keep(*given: Any, **named: Any) -> Any:
            kept[self._here.batch] = found = run(*given, **named)
            return found

        layers[-1].forward = keep
        try:
            self.encode(self.model)
            for layer in layers:
                layer.forward = lambda *_, **__: kept[self._here.batch]
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)

    def sensitivity(self, types: Mapping[str, str]) -> npt.NDArray[np.float64]:
        """1 − cosine to fp32 of each text, with the named tensors rounded to nearest at these native types."""
        with self.rounded(types):
            return self.loss(self.encode(self.model))

    def loss(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """1 − cosine to fp32 of each text's vector, float64 (texts,)."""
        return 1 - cosines(self.reference, vectors)

    def moves(self, rows: Rows, biases: "Mapping[str, torch.Tensor] | None" = None, block: int | None = None) -> Floats:
        """How each text's vector, of unit length, moves with these values of tensors, and of biases by their parameters'
        names: float32 (texts, dimensions). `block`: that by which their inputs are rounded, too, where they are.
        """
        with self.holding({**self.put(rows), **(biases or {})}), self._inputs_rounded(rows, block):
            found: Floats = (normalized(self.encode(self.model)) - normalized(self.reference)).astype(np.float32)
        return found

    @contextmanager
    def _inputs_rounded(self, tensors: Iterable[str], block: int | None) -> Iterator[None]:
        """Inside, what Linears multiply these tensors with is rounded, where a block is named; a table is not multiplied."""
        import torch

        from tierexport.search.activations import rounding_hook

        linears = {id(each.weight): each for each in self.model.modules() if isinstance(each, torch.nn.Linear)}
        with ExitStack() as stack:
            if block:
                for place in (place for tensor in tensors for place in self.places[tensor]):
                    if linear := linears.get(id(self.parameters[place.parameter])):
                        hooked = linear.register_forward_hook(rounding_hook(block, torch.tensor(place.into)))
                        stack.callback(hooked.remove)
            yield

    def rows(self, tensor: str) -> "torch.Tensor":
        """The values of a tensor as the model has them now."""
        places = self.places[tensor]
        first = self.parameters[places[0].parameter].data
        found: torch.Tensor = first.new_empty(sum(len(place.rows) for place in places), *first.shape[1:])
        for place in places:
            found[place.rows] = self.parameters[place.parameter].data[place.into]
        return found

    def put(self, rows: Rows) -> "dict[str, torch.Tensor]":
        """The parameters that hold these values of tensors, by name."""
        found: dict[str, torch.Tensor] = {}
        for tensor, values in rows.items():
            for place in self.places[tensor]:
                found[place.parameter] = place.put(found.get(place.parameter, self.parameters[place.parameter].data), values)
        return found

    def nearest(self, tensor: str, native: str) -> "torch.Tensor":
        """What rounding a tensor to nearest leaves of it."""
        import torch

        return torch.from_numpy(self.choices.nearest(self.rows(tensor).numpy(), native, self._imatrix.means.get(tensor)))

    @contextmanager
    def rounded(self, types: Mapping[str, str]) -> Iterator[None]:
        """Inside, each named tensor holds what rounding it to nearest at its native type leaves of it."""
        with self.holding(self.put({tensor: self.nearest(tensor, native) for tensor, native in types.items()})):
            yield

    @contextmanager
    def holding(self, values: "Mapping[str, torch.Tensor]") -> Iterator[None]:
        """Inside, parameters have these values."""
        before = {name: self.parameters[name].data for name in values}
        try:
            for name, each in values.items():
                self.parameters[name].data = each
            yield
        finally:
            for name, each in before.items():
                self.parameters[name].data = each


def _parameters(model: "SentenceTransformer") -> dict[str, Any]:
    """The parameters of the transformer by its own names, and those of the modules after it by the whole model's."""
    own = dict(model.transformers_model.named_parameters())
    held = {id(each) for each in own.values()}
    return own | {name: each for name, each in model.named_parameters() if id(each) not in held}


def _places(
    parameters: Mapping[str, Any], tensors: Sequence[Tensor], unquantized: Mapping[str, Floats]
) -> dict[str, list[RowPlacement]]:
    """Where the rows of each tensor lie: by names, or, where those don't say it, by values. Raises PlanError for one that is
    not there.
    """
    named = parameters_of(tensors, parameters)
    matrices = {name: each.data for name, each in parameters.items() if each.dim() == 2}
    found = {}
    for tensor in tensors:
        rows = [len(parameters[name]) for name in named[tensor.name]]
        if rows and sum(rows) == tensor.shape[0]:
            starts = np.cumsum([0, *rows])
            where = zip(named[tensor.name], starts, rows, strict=False)
            found[tensor.name] = [RowPlacement(list(range(at, at + n)), name, list(range(n))) for name, at, n in where]
            continue
        if tensor.name in unquantized:
            found[tensor.name] = row_placements(unquantized[tensor.name].reshape(tensor.shape), matrices)
        if sum(len(place.rows) for place in found.get(tensor.name, ())) < tensor.shape[0]:
            raise PlanError(f"{tensor.name} can't be found in the running model, so its sensitivity can't be measured")
    return found
