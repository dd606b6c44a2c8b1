"""Rounds a model's matrices in the order in which they act, each for the inputs that the rounded ones before it give.

What the matrices before have spoilt is partly made good: the target of a matrix is not its own output on
spoilt inputs but, half-way, the output that fp32 has for the same token (docs/log.md has what was tried).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tierexport.base.errors import PlanError
from tierexport.base.records import Floats, Tensor, Text
from tierexport.base.stages import Stages
from tierexport.quantize.gptq import Codes, Curvature, curvature_of, gptq, objective
from tierexport.quantize.grids import Grid
from tierexport.quantize.replay import Replay, State
from tierexport.quantize.storage import read_codes, write_codes

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

CORRECTION = 0.5
"""Share of the way from a matrix's own output to fp32's; all of it fits the calibration texts too well."""

CORRECTION_DAMPING = 0.05
"""Share of the mean diagonal of H that damps the correction."""

TOKENS = 8192
"""Calibration tokens that are read, about: of more, texts are taken at even distances. More gain, and take as much longer
(docs/log.md)."""

TOKENS_TO_TUNE = 24_576
"""The same where tuning follows, which takes minutes anyway."""


@dataclass(frozen=True)
class Place:
    """Rows of a tensor, and the rows of a parameter that hold the same values."""

    rows: list[int]
    parameter: str
    into: list[int]

    def put(self, weight: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
        """The parameter with the tensor's rows in it."""
        import torch

        return weight.index_copy(0, torch.tensor(self.into, device=weight.device), values[self.rows])


@dataclass(frozen=True)
class Rounded:
    """What a model was rounded to: codes by tensor, and where their rows lie in the running model's parameters;
    and new values of parameters that stay in fp32, by the parameter's name, where those were tuned.
    """

    codes: Mapping[str, Codes]
    places: Mapping[str, Sequence[Place]]
    kept: Mapping[str, Floats] = field(default_factory=dict)


NOTHING_ROUNDED = Rounded({}, {})


@dataclass(frozen=True)
class Target:
    """A tensor to be rounded: its fp32 values (rows, columns), the values that the format's own rounding leaves,
    and its grid, or None where that own rounding is what it gets.
    """

    tensor: Tensor
    values: Callable[[], Floats]
    nearest: Callable[[], Floats]
    grid: Grid | None


@dataclass(frozen=True)
class _Input:
    """What matrices that share an input have in common: H of that input, what error feedback needs of it (None
    where it is degenerate), and the correction, a float32 (columns, columns) to multiply a weight with.
    """

    hessian: "torch.Tensor"
    curvature: Curvature | None
    correction: "torch.Tensor"


class Layerwise:
    """A running model that is rounded layer by layer, beside what it was."""

    def __init__(self, replay: Replay, model: "torch.nn.Module", targets: Sequence[Target]) -> None:
        self._replay = replay
        self._targets = [target for target in targets if target.tensor.layer is not None]
        self._parameters = dict(model.named_parameters())
        self.places: dict[str, list[Place]] = {}
        self._exact: dict[str, torch.Tensor] = {}
        self._fp32_states: list[State] = [None for _ in replay.batches]
        self._states: list[State] = [None for _ in replay.batches]
        matrices = [name for name, parameter in self._parameters.items() if parameter.dim() == 2]
        for target in targets:
            if target.tensor.layer is None:
                self._put(_places(target.values(), self._fp32_weights(matrices)), target.nearest())

    def round(self, layer: int, known: Mapping[str, Codes] | None = None) -> dict[str, Codes]:
        """The codes of a layer's tensors, without those that the format's own rounding serves better, or has to serve.

        `known`: what an earlier run has found for this layer, which is taken as it is.
        """
        waiting = {target.tensor.name: target for target in self._targets if target.tensor.layer == layer}
        found = dict(known or {})
        stages = self._replay.stages(layer, self._states[0])
        exact = self._trace_fp32(layer, [names[0] for names in stages] if known is None else [])
        for names in stages:
            shared = None
            for name, target in list(waiting.items()):
                places = _places(target.values(), self._fp32_weights(names))
                if sum(len(place.rows) for place in places) < len(target.values()):
                    continue
                del waiting[name]
                self.places[name] = places
                if target.grid is not None and known is None:
                    shared = shared or self._input(layer, names[0], exact[names[0]])
                    if codes := _rounded(target, shared):
                        found[name] = codes
                self._put(places, found[name].values().numpy() if name in found else target.nearest())
        self._put_waiting(layer, list(waiting.values()))
        self._states = [self._replay.trace(layer, batch, self._states[batch])[1] for batch in self._replay.batches]
        self._exact.clear()
        return found

    def _put_waiting(self, layer: int, waiting: Sequence[Target]) -> None:
        """Give matrices that no Linear was seen to use the format's own rounding.

        Raises PlanError if that is all of a layer's that were to have error feedback.
        """
        asked = [target for target in self._targets if target.tensor.layer == layer and target.grid is not None]
        if asked and all(target in waiting for target in asked):
            raise PlanError(
                f"none of the matrices of layer {layer} was found in the running model, {asked[0].tensor.name} for one: "
                'its converter changes them, so take rounding = "nearest"'
            )
        matrices = [name for name, parameter in self._parameters.items() if parameter.dim() == 2] if waiting else []
        for target in waiting:
            self._put(_places(target.values(), self._fp32_weights(matrices)), target.nearest())

    def _trace_fp32(self, layer: int, names: Sequence[str]) -> "dict[str, list[torch.Tensor]]":
        """Run a layer as it was over all texts: what the named Linears get, batch by batch."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with self._fp32():
            for batch in self._replay.batches:
                inputs, output = self._replay.trace(layer, batch, self._fp32_states[batch], names)
                self._fp32_states[batch] = output
                for name in names:
                    found[name].append(inputs[name])
        return found

    def _input(self, layer: int, name: str, exact: "Sequence[torch.Tensor]") -> _Input:
        """Run the layer as it is now up to a Linear, over all texts; `exact` is what the Linear gets in fp32."""
        import torch

        columns = self._parameters[name].shape[1]
        hessian, drift, tokens = torch.zeros(columns, columns), torch.zeros(columns, columns), 0
        for batch in self._replay.batches:
            inputs = self._replay.inputs(layer, batch, self._states[batch], name)
            hessian.addmm_(inputs.T, inputs)
            drift.addmm_((exact[batch] - inputs).T, inputs)
            tokens += len(inputs)
        hessian, drift = hessian / tokens, drift / tokens
        return _Input(hessian, curvature_of(hessian), CORRECTION * _correction(hessian, drift))

    def _put(self, places: "Iterable[Place]", values: Floats) -> None:
        """Give rows of parameters these values, and keep what they were until the layer is done."""
        import torch

        for place in places:
            parameter = self._parameters[place.parameter]
            if place.parameter not in self._exact:
                self._exact[place.parameter] = parameter.data
                parameter.data = parameter.data.clone()
            parameter.data[place.into] = torch.from_numpy(values[place.rows])

    def _fp32_weights(self, names: Iterable[str]) -> "dict[str, torch.Tensor]":
        """What the named parameters were."""
        return {name: self._exact.get(name, self._parameters[name].data) for name in names}

    @contextmanager
    def _fp32(self) -> Iterator[None]:
        """Inside, what was rounded since the last layer is what it was."""
        rounded = {name: self._parameters[name].data for name in self._exact}
        try:
            for name, values in self._exact.items():
                self._parameters[name].data = values
            yield
        finally:
            for name, values in rounded.items():
                self._parameters[name].data = values


def round_layers(
    model: "SentenceTransformer",
    texts: Sequence[Text],
    targets: "Sequence[Target]",
    stages: Stages,
    key: str,
    tokens: int = TOKENS,
    step: Callable[[int], None] = lambda _: None,
) -> Rounded:
    """The codes of every target that error feedback serves better than the format's own rounding.

    About `tokens` of the texts are read. The model holds in the end what every target was rounded to whose
    rows it has. Each layer is kept in `stages` under `key` once it is done; `step` hears the parameters
    done. Raises PlanError for a model without a list of layers, or with none of a layer's matrices.
    """
    replay = Replay(model, texts, tokens)
    work = Layerwise(replay, model.transformers_model, targets)
    grids = {target.tensor.name: target.grid for target in targets if target.grid}
    found: dict[str, Codes] = {}
    for layer in range(len(replay.layers)):
        found |= _kept(work, layer, grids, stages, key)
        step(sum(target.tensor.parameters for target in targets if target.tensor.layer == layer))
    return Rounded(found, work.places)


def _kept(work: "Layerwise", layer: int, grids: Mapping[str, Grid], stages: Stages, key: str) -> dict[str, Codes]:
    """A layer's codes, found now or by a run that did not get further than this."""
    made: list[dict[str, Codes]] = []

    def make(folder: Path) -> None:
        made.append(work.round(layer))
        write_codes(made[0], folder / "codes.safetensors")

    folder = stages.run(f"layer-{layer}", key, make)
    return made[0] if made else work.round(layer, read_codes(folder / "codes.safetensors", grids))


def _rounded(target: Target, shared: _Input) -> Codes | None:
    """The codes of a tensor, unless the format's own rounding is as good by the objective."""
    import torch

    if shared.curvature is None or target.grid is None:
        return None
    weight = torch.from_numpy(target.values())
    wished = weight + weight @ shared.correction
    codes = gptq(wished, shared.curvature, target.grid)
    nearest = torch.from_numpy(target.nearest())
    better = objective(wished, codes.values(), shared.hessian) < objective(wished, nearest, shared.hessian)
    return codes if better else None


def _correction(hessian: "torch.Tensor", drift: "torch.Tensor") -> "torch.Tensor":
    """What brings an output on the rounded model's inputs nearest to fp32's: least squares, damped.

    `drift` is the mean of (e - x) xᵀ, x being the inputs that the rounded model has and e those of fp32.
    """
    import torch

    damped = hessian + torch.eye(len(hessian)) * (CORRECTION_DAMPING * hessian.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    found = torch.cholesky_solve(drift.T, lower).T
    return torch.zeros_like(drift) if failed or not torch.isfinite(found).all() else found


def _places(values: Floats, weights: "Mapping[str, torch.Tensor]") -> list[Place]:
    """Where in these fp32 weights each row of a tensor lies.

    A converter fuses matrices, splits them, and puts their rows in another order, but leaves rows whole.
    """
    wanted = {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(values))}
    found = []
    for name, weight in weights.items():
        matrix = weight.numpy()
        if matrix.shape[-1] != values.shape[-1]:
            continue
        pairs = [(wanted[key], into) for into, row in enumerate(matrix) if (key := row.tobytes()) in wanted]
        if pairs:
            found.append(Place([row for row, _ in pairs], name, [into for _, into in pairs]))
    return found
