"""Runs a model one layer at a time over the same texts, each layer on the stored output of the one before it.

The model calls its own layers, masks and all; those before the layer in question are replaced by functions that return
the stored output.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import torch

from tierexport.base.errors import PlanError
from tierexport.base.records import Text
from tierexport.datasets.calibration import spread
from tierexport.model.batches import batches, prompted, real_rows, token_ids

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

State = Any
"""What a layer returned for one batch, which is what the next one gets."""


class _StopForwardError(Exception):
    """Ends a forward pass once the wanted tensor has been seen."""


class Replay:
    """A model, its layers, and texts in batches."""

    def __init__(self, model: "SentenceTransformer", texts: Sequence[Text], tokens: int) -> None:
        """`tokens`: how many to read at most; where there are more, texts are taken at even distances."""
        self._model = model
        self.layers = layer_modules(model.transformers_model)
        read = prompted(model.prompts, texts)
        total = sum(len(ids) for ids in token_ids(model, read))
        read = spread(read, max(len(read) * tokens // max(total, 1), 1))
        self.batches = list(batches(model, read))

    def linears(self, layer: int) -> dict[str, torch.nn.Linear]:
        """The Linears of a layer by the names of their weights in the whole model."""
        inside = set(self.layers[layer].modules())
        every = self._model.transformers_model.named_modules()
        return {f"{name}.weight": each for name, each in every if isinstance(each, torch.nn.Linear) and each in inside}

    def same_inputs(self, layer: int, state: State) -> list[list[str]]:
        """The weights of a layer in the order in which they are applied, those that share an input together.

        `state`: the layer's input for the first batch.
        """
        found: list[tuple[torch.Tensor, list[str]]] = []

        def watch(name: str, inputs: torch.Tensor) -> None:
            if found and found[-1][0] is inputs:
                found[-1][1].append(name)
            else:
                found.append((inputs, [name]))  # the tensor is held, so that no other takes its place

        hooks = {name: lambda _, inputs, name=name: watch(name, inputs[0]) for name in self.linears(layer)}
        self._pass(layer, 0, state, hooks)
        return [names for _, names in found]

    def inputs(self, layer: int, batch: int, state: State, name: str) -> torch.Tensor:
        """What a Linear of a layer gets for a batch: float32 (real tokens, columns)."""
        found = []

        def watch(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            found.append(real_rows(inputs[0], self.batches[batch].mask))
            raise _StopForwardError

        self._pass(layer, batch, state, {name: watch})
        return found[0]

    def trace(self, layer: int, batch: int, state: State, names: Iterable[str] = ()) -> tuple[dict[str, torch.Tensor], State]:
        """What these Linears of a layer get for a batch, as `inputs` gives it, and what the layer returns."""
        found: dict[str, torch.Tensor] = {}

        def watch(name: str, inputs: torch.Tensor) -> None:
            found.setdefault(name, real_rows(inputs, self.batches[batch].mask))  # the first call's, as in `inputs`

        hooks = {name: lambda _, inputs, name=name: watch(name, inputs[0]) for name in names}
        output = self._pass(layer, batch, state, hooks)
        return found, output

    def _pass(self, layer: int, batch: int, state: State, hooks: dict[str, Callable[..., None]]) -> State:
        """What a layer returns for a batch and its input `state`, with hooks on its Linears; None where a hook ends it."""
        found = []

        def done(_: Any, __: Any, output: State) -> None:
            found.append(output)
            raise _StopForwardError

        with ExitStack() as stack, torch.inference_mode():
            for earlier in self.layers[:layer]:
                stack.callback(setattr, earlier, "forward", earlier.forward)
                earlier.forward = lambda *_, **__: state
            linears = self.linears(layer) if hooks else {}
            for name, hook in hooks.items():
                stack.callback(linears[name].register_forward_pre_hook(hook).remove)
            stack.callback(self.layers[layer].register_forward_hook(done).remove)
            with suppress(_StopForwardError):
                self._model(dict(self.batches[batch].features))
        return found[0] if found else None


def layer_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of an encoder: the list of modules that holds most of its Linears.

    Raises PlanError for a model that has none.
    """

    def linears(module: torch.nn.Module) -> int:
        return sum(isinstance(each, torch.nn.Linear) for each in module.modules())

    lists: list[torch.nn.ModuleList] = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList)]
    best = max(lists, key=linears, default=None)
    if best is None or not linears(best):
        raise PlanError(f'{type(model).__name__} has no list of layers to round one by one: take rounding = "nearest"')
    return list(best)
