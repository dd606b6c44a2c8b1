"""Forward passes of a model over texts, in fp32 and as it is being rounded, that pause side by side before its Linears.

A pass is a coroutine (greenlet): a hook on a Linear hands its input out and the pass rests there, its activations with it,
until it is asked to go on. So each pass runs once, whatever is rounded on its way, and a model calls its own layers, masks
and all. A lane is one worker with its share of the batches; all lanes run side by side, each with one thread.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from greenlet import getcurrent, greenlet

from tierexport.base.errors import PlanError
from tierexport.base.records import Text
from tierexport.base.workers import cores, threads
from tierexport.model.batches import Batch, batches, features_of, prompted, real_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MOST_LANES = 8
"""Each lane sums up a Hessian of its own."""

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The weights of Linears of one layer that get the same input, in the order in which they are applied."""

    number: int
    layer: int
    names: tuple[str, ...]


class Pass(greenlet):
    """One batch on its way through the model; `exact`: through fp32 layers."""

    def __init__(self, model: "SentenceTransformer", batch: Batch, exact: bool) -> None:
        super().__init__(lambda: model(dict(batch.features)))
        self.exact = exact
        self._home = getcurrent()
        self._mask = batch.mask
        self._wanted = 0
        self._step = -1
        self._inputs: torch.Tensor | None = None

    def advance(self, step: Step) -> torch.Tensor | None:
        """Go on to where this step's input is there: float32 (real tokens, columns); None where the pass has none of it."""
        self._wanted = step.number
        if self._step < step.number and not self.dead:
            self._inputs = None
            self.switch()
        return real_rows(self._inputs, self._mask) if self._step == step.number and self._inputs is not None else None

    def pause(self, number: int, inputs: torch.Tensor) -> None:
        """Called by the hook on a step's first Linear, inside this pass: rest here, if it is wanted or one after it."""
        if number < self._wanted or number <= self._step:
            return
        self._step, self._inputs = number, inputs
        self._home.switch()


@dataclass(frozen=True)
class Lane:
    """A worker's own thread, and pairs of passes of its batches: in fp32, and as the model is."""

    thread: ThreadPoolExecutor
    pairs: list[tuple[Pass, Pass]]


class Passes:
    """A model, its layers, and all passes of some texts through it."""

    def __init__(self, model: "SentenceTransformer", texts: Sequence[Text]) -> None:
        self._model = model
        self._read = prompted(model.prompts, texts)
        self.layers = layer_modules(model.transformers_model)
        self.again: set[str] = set()  # weights of layers that texts go through more than once
        self.steps = list(self._steps())
        self._lanes: list[Lane] = []
        self._exact: dict[int, torch.nn.Module] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, passes can advance."""
        with ExitStack() as stack:
            stack.enter_context(threads(1))
            stack.callback(self._exact.clear)
            for layer in range(len(self.layers)):
                stack.callback(self._divert(layer))
            linears = {name: linear for _, name, linear in self._linears()}
            for step in self.steps:
                stack.callback(linears[step.names[0]].register_forward_pre_hook(_pausing(step.number)).remove)
            every = list(batches(self._model, self._read))
            count = min(cores(), MOST_LANES, len(every)) if self._model.device.type == "cpu" else 1
            for number in range(count):
                thread = stack.enter_context(ThreadPoolExecutor(1))
                self._lanes.append(Lane(thread, thread.submit(self._pairs, every[number::count]).result()))
            stack.callback(self._stop)
            yield

    def _pairs(self, given: Sequence[Batch]) -> list[tuple[Pass, Pass]]:
        """The passes of some batches, which belong to the thread that they are made in."""
        return [(Pass(self._model, each, True), Pass(self._model, each, False)) for each in given]

    def first_beyond(self, step: Step) -> Step | None:
        """The step after this one, if that is not in the same layer; after the last there is one that no pass gets to."""
        later = [*self.steps, Step(len(self.steps), len(self.layers), ())][step.number + 1]
        return later if later.layer != step.layer else None

    def advance(self, step: Step, rounded: bool = True) -> None:
        """Take all passes to a step, or those in fp32 alone."""

        def advance(pairs: list[tuple[Pass, Pass]]) -> None:
            for pair in pairs:
                for each in pair if rounded else pair[:1]:
                    each.advance(step)

        self.each_lane(advance)

    def each_lane(self, work: Callable[[list[tuple[Pass, Pass]]], T]) -> list[T]:
        """What `work` makes of each lane's pairs of passes, all lanes at once."""

        def without_gradients(pairs: list[tuple[Pass, Pass]]) -> T:
            with torch.no_grad():
                return work(pairs)

        return [each.result() for each in [lane.thread.submit(without_gradients, lane.pairs) for lane in self._lanes]]

    def keep_exact(self, layer: int) -> None:
        """Let passes in fp32 go through a copy of this layer as it is now, from when they next enter it."""
        if layer < len(self.layers):
            self._exact[layer] = copied = copy.deepcopy(self.layers[layer])
            copied.__dict__.pop("forward")  # the copy's own

    def drop_exact(self, layer: int) -> None:
        """Let go of that copy: all passes in fp32 have left it."""
        del self._exact[layer]

    def _divert(self, layer: int) -> Callable[[], None]:
        """Send passes in fp32 that enter a layer into its copy; what ends that."""
        module = self.layers[layer]
        own = module.forward

        def forward(*given: Any, **named: Any) -> Any:
            current = getcurrent()
            return (self._exact[layer] if isinstance(current, Pass) and current.exact else own)(*given, **named)

        module.forward = forward
        return lambda: module.__dict__.pop("forward")

    def _stop(self) -> None:
        """End what has not come to its end; a greenlet has to end in its own thread."""
        self.each_lane(lambda pairs: [each.throw() for pair in pairs for each in pair if not each.dead])
        self._lanes.clear()

    def _linears(self) -> Iterator[tuple[int, str, torch.nn.Linear]]:
        """The Linears of all layers, each with its layer and its weight's name in the whole model."""
        layer_of = {module: number for number, layer in enumerate(self.layers) for module in layer.modules()}
        for name, module in self._model.transformers_model.named_modules():
            if isinstance(module, torch.nn.Linear) and module in layer_of:
                yield layer_of[module], f"{name}.weight", module

    def _steps(self) -> Iterator[Step]:
        """What a pass of one short text applies, in order."""
        seen: list[tuple[int, torch.Tensor, list[str]]] = []

        def watch(layer: int, name: str, inputs: torch.Tensor) -> None:
            if any(name in names for _, _, names in seen):
                if entered[layer] > 1:
                    self.again.add(name)
                return
            if seen and seen[-1][1] is inputs and seen[-1][0] == layer:
                seen[-1][2].append(name)
            else:
                seen.append((layer, inputs, [name]))  # the tensor is held, so that no other takes its place

        entered = Counter[int]()
        with ExitStack() as stack, torch.inference_mode():
            for number, module in enumerate(self.layers):
                count = lambda *_, number=number: entered.update([number])  # noqa: E731
                stack.callback(module.register_forward_pre_hook(count).remove)
            for layer, name, linear in self._linears():
                hook = lambda _, inputs, layer=layer, name=name: watch(layer, name, inputs[0])  # noqa: E731
                stack.callback(linear.register_forward_pre_hook(hook).remove)
            self._model(features_of(self._model, [min(self._read, key=len)]))
        for number, (layer, _, names) in enumerate(seen):
            yield Step(number, layer, tuple(names))


def _pausing(number: int) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def pause(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        current = getcurrent()
        if isinstance(current, Pass):
            current.pause(number, inputs[0])

    return pause


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
