"""Rounds a model's matrices in the order in which they are applied, each for inputs from the layers already quantized.

What those inputs lose against fp32's is corrected for, half-way: the asymmetric calibration of GPTAQ (Li et al. 2025,
arXiv 2504.02692), which asks of a matrix not its own output on quantized inputs x, but fp32's output on fp32's inputs e for
the same token. With H the mean of x xᵀ and D the mean of (e - x) xᵀ, the weights rounded by GPTQ are

    W* = W + CORRECTION · W D (H + λI)⁻¹

W (1 + D H⁻¹) being the least squares fit of W e by x (docs/log.md has what was tried).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tierexport.base.errors import PlanError
from tierexport.base.records import Floats, Text
from tierexport.base.stages import Stages
from tierexport.model.placement import RowPlacement, row_placements
from tierexport.quantize.codes import Codes, read_codes, write_codes
from tierexport.quantize.gptq import Curvature, curvature_of, gptq, objective
from tierexport.quantize.grids import Grid
from tierexport.quantize.replay import Replay, State
from tierexport.quantize.targets import TOKENS, Rounded, Target

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CORRECTION = 0.5
"""Share of the way from a matrix's own output to fp32's; all of it fits the calibration texts too well."""

CORRECTION_DAMPING = 0.05
"""λ, as a share of the mean diagonal of H."""


def round_layers(
    model: "SentenceTransformer",
    texts: Sequence[Text],
    targets: Sequence[Target],
    stages: Stages,
    key: str,
    tokens: int = TOKENS,
    progress: Callable[[int], None] = lambda _: None,
) -> Rounded:
    """The codes of every target that error feedback serves better than the format's own rounding.

    About `tokens` of the texts are read. The model holds in the end what every target was rounded to whose rows it has.
    Each layer is kept in `stages` under `key` once it is done. `progress`: called with the number of parameters done since
    the last call. Raises PlanError for a model without a list of layers, or with none of a layer's matrices.
    """
    replay = Replay(model, texts, tokens)
    work = Layerwise(replay, model.transformers_model, targets)
    grids = {target.tensor.name: target.grid for target in targets if target.grid}
    found: dict[str, Codes] = {}
    for layer in range(len(replay.layers)):
        found |= _stored(work, layer, grids, stages, key)
        progress(sum(target.tensor.parameters for target in targets if target.tensor.layer == layer))
    return Rounded(found, work.places)


def _stored(work: "Layerwise", layer: int, grids: Mapping[str, Grid], stages: Stages, key: str) -> dict[str, Codes]:
    """A layer's codes, found now or by a run that did not get further than this."""
    made: list[dict[str, Codes]] = []

    def make(folder: Path) -> None:
        made.append(work.round(layer))
        write_codes(made[0], folder / "codes.safetensors")

    folder = stages.run(f"layer-{layer}", key, make)
    return made[0] if made else work.round(layer, read_codes(folder / "codes.safetensors", grids))


class Layerwise:
    """A running model that is rounded layer by layer, beside what it was."""

    def __init__(self, replay: Replay, model: torch.nn.Module, targets: Sequence[Target]) -> None:
        self._replay = replay
        self._targets = [target for target in targets if target.tensor.layer is not None]
        self._weights = _Weights(model)
        self.places: dict[str, list[RowPlacement]] = {}
        self._fp32_states: list[State] = [None for _ in replay.batches]
        self._states: list[State] = [None for _ in replay.batches]
        for target in targets:
            if target.tensor.layer is None:
                self._weights.put(self._weights.placed(target), target.nearest())

    def round(self, layer: int, known: Mapping[str, Codes] | None = None) -> dict[str, Codes]:
        """The codes of a layer's tensors, without those that the format's own rounding serves better, or has to serve.

        `known`: what an earlier run has found for this layer, which is taken as it is. Raises PlanError where none of the
        matrices that are to have error feedback lies in a Linear.
        """
        waiting = [target for target in self._targets if target.tensor.layer == layer]
        groups = self._replay.same_inputs(layer, self._states[0])
        exact = self._trace_fp32(layer, [names[0] for names in groups] if known is None else [])
        found: dict[str, Codes] = {}
        for names in groups:
            here = self._place(waiting, names)
            waiting = [target for target in waiting if target not in here]
            asked = known is None and any(target.grid for target in here)
            inputs = self._inputs(layer, names[0], exact[names[0]]) if asked else None
            for target in here:
                codes = (known or {}).get(target.tensor.name) if inputs is None else _rounded(target, inputs)
                if codes:
                    found[target.tensor.name] = codes
                self._weights.put(self.places[target.tensor.name], codes.values().numpy() if codes else target.nearest())
        self._put_waiting(layer, waiting)
        self._states = [self._replay.trace(layer, *each)[1] for each in enumerate(self._states)]
        self._weights.forget_fp32()
        return found

    def _place(self, waiting: Iterable[Target], names: Sequence[str]) -> list[Target]:
        """The targets that lie whole in the named weights; notes where."""
        here = []
        for target in waiting:
            places = self._weights.placed(target, names)
            if sum(len(place.rows) for place in places) >= len(target.values()):
                self.places[target.tensor.name] = places
                here.append(target)
        return here

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
        for target in waiting:
            self._weights.put(self._weights.placed(target), target.nearest())

    def _trace_fp32(self, layer: int, names: Sequence[str]) -> dict[str, list[torch.Tensor]]:
        """Run a layer as it was over all texts: what the named Linears get, batch by batch."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with self._weights.fp32():
            for batch, state in enumerate(self._fp32_states):
                inputs, self._fp32_states[batch] = self._replay.trace(layer, batch, state, names)
                for name in names:
                    found[name].append(inputs[name])
        return found

    def _inputs(self, layer: int, name: str, exact: Sequence[torch.Tensor]) -> "_Inputs":
        """Run the layer as it is now up to a Linear, over all texts; `exact` is what the Linear gets in fp32."""
        columns = exact[0].shape[1]
        hessian, drift, tokens = torch.zeros(columns, columns), torch.zeros(columns, columns), 0
        for batch, state in enumerate(self._states):
            inputs = self._replay.inputs(layer, batch, state, name)
            hessian.addmm_(inputs.T, inputs)
            drift.addmm_((exact[batch] - inputs).T, inputs)
            tokens += len(inputs)
        hessian, drift = hessian / tokens, drift / tokens
        return _Inputs(hessian, curvature_of(hessian), CORRECTION * _correction(hessian, drift))


class _Weights:
    """The parameters of a running model, and the fp32 values of those that have been rounded since the last layer."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._matrices = [name for name, parameter in self._parameters.items() if parameter.dim() == 2]
        self._fp32: dict[str, torch.Tensor] = {}

    def placed(self, target: Target, names: Iterable[str] | None = None) -> list[RowPlacement]:
        """Where a target's rows lie in the named parameters' fp32 values, or in any matrix."""
        chosen = self._matrices if names is None else names
        return row_placements(target.values(), {name: self._fp32.get(name, self._parameters[name].data) for name in chosen})

    def put(self, places: Iterable[RowPlacement], values: Floats) -> None:
        """Give rows of parameters these values, float32 (rows, columns), and keep what they were until `forget_fp32`."""
        for place in places:
            parameter = self._parameters[place.parameter]
            if place.parameter not in self._fp32:
                self._fp32[place.parameter] = parameter.data
                parameter.data = parameter.data.clone()
            parameter.data[place.into] = torch.from_numpy(values[place.rows])

    def forget_fp32(self) -> None:
        """Let go of the fp32 values."""
        self._fp32.clear()

    @contextmanager
    def fp32(self) -> Iterator[None]:
        """Inside, what was rounded since the last layer is what it was."""
        rounded = {name: self._parameters[name].data for name in self._fp32}
        try:
            self._load(self._fp32)
            yield
        finally:
            self._load(rounded)

    def _load(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, each in values.items():
            self._parameters[name].data = each


@dataclass(frozen=True)
class _Inputs:
    """What matrices that share an input have in common: H of that input, what error feedback needs of it (None where it is
    degenerate), and CORRECTION · D (H + λI)⁻¹, float32 (columns, columns), which a weight is multiplied with.
    """

    hessian: torch.Tensor
    curvature: Curvature | None
    correction: torch.Tensor


def _rounded(target: Target, inputs: _Inputs) -> Codes | None:
    """The codes of a tensor, unless the format's own rounding is as good by the objective."""
    if inputs.curvature is None or target.grid is None:
        return None
    weight = torch.from_numpy(target.values())
    corrected = weight + weight @ inputs.correction
    codes = gptq(corrected, inputs.curvature, target.grid)
    nearest = torch.from_numpy(target.nearest())
    better = objective(corrected, codes.values(), inputs.hessian) < objective(corrected, nearest, inputs.hessian)
    return codes if better else None


def _correction(hessian: torch.Tensor, drift: torch.Tensor) -> torch.Tensor:
    """D (H + λI)⁻¹, float32 (columns, columns); zeros where it can't be computed. `drift`: D, the mean of (e - x) xᵀ."""
    damped = hessian + torch.eye(len(hessian)) * (CORRECTION_DAMPING * hessian.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    found = torch.cholesky_solve(drift.T, lower).T
    return torch.zeros_like(drift) if failed or not torch.isfinite(found).all() else found
