"""Rounds a model's matrices in the order in which they are applied, each for inputs from the layers already quantized.

What those inputs lose against fp32's is corrected for, half-way: the asymmetric calibration of GPTAQ (Li et al. 2025,
arXiv 2504.02692), which asks of a matrix not its own output on quantized inputs x, but fp32's output on fp32's inputs e for
the same token. With H the mean of x xᵀ and D the mean of (e - x) xᵀ, the weights rounded by GPTQ are

    W* = W + CORRECTION · W D (H + λI)⁻¹

W (1 + D H⁻¹) being the least squares fit of W e by x (docs/log.md has what was tried). Where the format keeps a Linear's bias,
H and D are taken about the means of x and e, and the bias makes up for what the rounded weights Ŵ make of the means:

    b += W · mean(e) - Ŵ · mean(x)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.numpy import load_file, save_file

from tierexport.base.errors import PlanError
from tierexport.base.records import Floats, Text
from tierexport.base.stages import Stages
from tierexport.base.workers import on_cores
from tierexport.model.placement import RowPlacement, row_placements
from tierexport.quantize.codes import Codes, read_codes, write_codes
from tierexport.quantize.gptq import Curvature, Request, objective
from tierexport.quantize.grids import Grid
from tierexport.quantize.inputs import Inputs, Problem, gathered
from tierexport.quantize.layer_files import LayerFiles, Layers
from tierexport.quantize.passes import Passes, Step
from tierexport.quantize.rounding import round_matrices
from tierexport.quantize.tables import round_tables
from tierexport.quantize.targets import Rounded, Target

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def round_layers(
    model: "SentenceTransformer",
    texts: Sequence[Text],
    targets: Sequence[Target],
    biases: Iterable[str],
    stages: Stages,
    key: str,
    progress: Callable[[int], None] = lambda _: None,
    folder: Path | None = None,
) -> Rounded:
    """The codes of every target that error feedback serves better than the format's own rounding, and corrected biases.

    `biases` names parameters that the format keeps in fp32; those that are a Linear's are corrected. The model holds in the
    end what every target was rounded to whose rows it has; or, where `folder` is given, its layers lie there in files until
    passes come to them, and are empty in the end. Each layer is kept in `stages` under `key` once it is done. `progress`:
    called with the number of parameters done since the last call. Raises PlanError for a model without a list of layers, or
    with none of a layer's matrices, MachineError when the disk is full.
    """
    tables = _stored_tables(model, texts, targets, stages, key, progress)
    passes = Passes(model, texts)
    work = Layerwise(passes, model.transformers_model, targets, biases, tables)
    layers = LayerFiles(model, passes.layers, folder) if folder else Layers()
    found = Layer(dict(tables))
    with passes.running():
        layers.load(0)
        work.begin()
        for layer in range(len(passes.layers)):
            layers.load(layer + 1)
            passes.keep_exact(layer + 1)
            done = _stored(work, layer, stages, key)
            work.leave(layer)
            passes.drop_exact(layer)
            layers.drop(layer)
            found.codes.update(done.codes)
            found.biases.update(done.biases)
            progress(sum(target.tensor.parameters for target in targets if target.tensor.layer == layer))
    return Rounded(found.codes, work.places, found.biases)


@dataclass(frozen=True)
class Layer:
    """What the targets of a layer were rounded to: codes by tensor, and new values of biases, by parameter."""

    codes: dict[str, Codes] = field(default_factory=dict)
    biases: dict[str, Floats] = field(default_factory=dict)


def _stored_tables(
    model: "SentenceTransformer",
    texts: Sequence[Text],
    targets: Sequence[Target],
    stages: Stages,
    key: str,
    progress: Callable[[int], None],
) -> dict[str, Codes]:
    """The codes of tables, found now or by a run that did not get to the end."""

    def make(folder: Path) -> None:
        write_codes(round_tables(model, texts, targets, progress), folder / "codes.safetensors")

    return read_codes(stages.run("tables", key, make) / "codes.safetensors", grids_of(targets))


def grids_of(targets: Iterable[Target]) -> dict[str, Grid]:
    """The grids of the targets that are to have error feedback, by tensor."""
    return {target.tensor.name: target.grid for target in targets if target.grid}


def _stored(work: "Layerwise", layer: int, stages: Stages, key: str) -> Layer:
    """What is found for a layer, now or by a run that did not get further than this, as its files have it: mapped, so that the
    codes of layers that are done take no memory.
    """
    made: list[Layer] = []

    def make(folder: Path) -> None:
        made.append(work.round(layer))
        write_codes(made[0].codes, folder / "codes.safetensors")
        save_file(made[0].biases, folder / "biases.safetensors")

    folder = stages.run(f"layer-{layer}", key, make)
    found = Layer(read_codes(folder / "codes.safetensors", work.grids), load_file(folder / "biases.safetensors"))
    if not made:
        work.take(layer, found)
    return found


class Layerwise:
    """A running model that is rounded layer by layer, and the passes that go through it."""

    def __init__(
        self,
        passes: Passes,
        model: torch.nn.Module,
        targets: Sequence[Target],
        biases: Iterable[str],
        tables: Mapping[str, Codes],
    ) -> None:
        """`tables`: the codes of tables, by tensor."""
        self._passes = passes
        self._targets = targets
        self._tables = tables
        self._parameters = dict(model.named_parameters())
        self._biases = {name: self._parameters[name].data.clone() for name in biases if name in self._parameters}
        self.grids = grids_of(targets)
        self.places: dict[str, list[RowPlacement]] = {}

    def begin(self) -> None:
        """Take the passes to the first layer: those in fp32 through the tables as they are, then the others through the
        tables as they are rounded.
        """
        self._passes.keep_exact(0)
        self._passes.advance(self._passes.steps[0], rounded=False)
        self._round_elsewhere(target for target in self._targets if target.tensor.layer is None)
        self._passes.advance(self._passes.steps[0])

    def leave(self, layer: int) -> None:
        """Take the passes into the next layer, if there is one."""
        if later := [step for step in self._passes.steps if step.layer > layer]:
            self._passes.advance(later[0])

    def round(self, layer: int) -> Layer:
        """What a layer's tensors are rounded to, without codes of those that the format's own rounding serves better, or has
        to serve, as it has those that layers share. Raises PlanError where none of the matrices that are to have error
        feedback lies in a Linear.
        """
        found = Layer()
        for step, targets in self._place(layer):
            once = [target for target in targets if not self._is_applied_again(target)]
            asked = [target for target in once if target.grid]
            corrected = [target for target in once if self._bias_of(target)]
            inputs = gathered(self._passes, step, bool(asked)) if asked or corrected else None
            codes = self._codes(asked, inputs) if inputs else {}
            found.codes.update(codes)
            for target in targets:
                values = codes[target.tensor.name].values().numpy() if target.tensor.name in codes else target.nearest()
                if inputs and target in corrected:
                    found.biases.update(self._correct_bias(target, inputs, values))
                self._put(self.places[target.tensor.name], values)
        return found

    def take(self, layer: int, known: Layer) -> None:
        """Give a layer what an earlier run has found for it."""
        for _, targets in self._place(layer):
            for target in targets:
                codes = known.codes.get(target.tensor.name)
                self._put(self.places[target.tensor.name], codes.values().numpy() if codes else target.nearest())
        for name, values in known.biases.items():
            self._parameters[name].data = torch.from_numpy(values).to(self._parameters[name].device)

    def _place(self, layer: int) -> list[tuple[Step, list[Target]]]:
        """A layer's steps, each with the targets that lie whole in its Linears' weights; the others are rounded at once.

        Raises PlanError if those are all of the layer's that were to have error feedback.
        """
        waiting = [target for target in self._targets if target.tensor.layer == layer]
        asked = [target for target in waiting if target.grid]
        placed = []
        for step in self._passes.steps:
            if step.layer == layer:
                here = [target for target in waiting if self._lies_in(target, step.names)]
                waiting = [target for target in waiting if target not in here]
                placed.append((step, here))
        if asked and all(target in waiting for target in asked):
            raise PlanError(
                f"none of the matrices of layer {layer} was found in the running model, {asked[0].tensor.name} for one: "
                'its converter changes them, so take rounding = "nearest"'
            )
        self._round_elsewhere(waiting)
        return placed

    def _lies_in(self, target: Target, names: Sequence[str]) -> bool:
        """Whether a target lies whole in the named weights; notes where."""
        values = target.values()
        places = row_placements(values, {name: self._parameters[name].data.cpu() for name in names})
        if sum(len(place.rows) for place in places) < len(values):
            return False
        self.places[target.tensor.name] = places
        return True

    def _round_elsewhere(self, targets: Iterable[Target]) -> None:
        """Give tables their codes' values, and matrices that no Linear is seen to use the format's own rounding, wherever they
        are.
        """
        matrices = {name: each.data.cpu() for name, each in self._parameters.items() if each.dim() == 2}
        for target in targets:
            codes = self._tables.get(target.tensor.name)
            self._put(row_placements(target.values(), matrices), codes.values().numpy() if codes else target.nearest())

    def _put(self, places: Iterable[RowPlacement], values: Floats) -> None:
        """Give rows of parameters these values, float32 (rows, columns)."""
        for place in places:
            data = self._parameters[place.parameter].data
            data[place.into] = torch.from_numpy(values[place.rows]).to(data.device)

    def _is_applied_again(self, target: Target) -> bool:
        """Whether layers share it (ALBERT's do), so that what fits the inputs of the first would not fit the others'."""
        return any(place.parameter in self._passes.again for place in self.places[target.tensor.name])

    def _bias_of(self, target: Target) -> Mapping[str, str]:
        """The bias of each Linear that a target lies in, by its weight; none where the format does not keep all of them."""
        names = {place.parameter: f"{place.parameter.removesuffix('weight')}bias" for place in self.places[target.tensor.name]}
        return names if self._biases.keys() >= set(names.values()) else {}

    def _correct_bias(self, target: Target, inputs: Inputs, values: Floats) -> dict[str, Floats]:
        """Let the biases of a target's Linears make up for what the means lose by its rounding to `values`.

        Each is fp32's with a change, so that rows that two targets share are corrected once.
        """
        change = inputs.bias_change(*(torch.from_numpy(each).to(inputs.mean) for each in (target.values(), values)))
        found = {}
        for place in self.places[target.tensor.name]:
            name = self._bias_of(target)[place.parameter]
            self._parameters[name].data[place.into] = self._biases[name][place.into] + change[place.rows]
            found[name] = self._parameters[name].detach().cpu().numpy().copy()
        return found

    def _codes(self, targets: Sequence[Target], inputs: Inputs) -> dict[str, Codes]:
        """The codes of targets that share an input, by tensor, without those that nearest rounding serves as well."""
        problems = [inputs.centred if self._bias_of(target) else inputs.plain for target in targets]
        asked = [
            _Asked(target, target.grid, problem, problem.curvature)
            for target, problem in zip(targets, problems, strict=True)
            if target.grid and problem.curvature
        ]
        requests = on_cores(_Asked.request, asked)
        codes = round_matrices(requests)
        better = on_cores(lambda each: each[0].is_served_by(*each[1:]), zip(asked, requests, codes, strict=True))
        return {each.target.tensor.name: found for each, found, kept in zip(asked, codes, better, strict=True) if kept}


@dataclass(frozen=True)
class _Asked:
    """A target that is to have error feedback, and what its inputs are like."""

    target: Target
    grid: Grid
    problem: Problem
    curvature: Curvature

    def request(self) -> Request:
        """The weight, corrected for what its inputs have lost, and what it is to be rounded by."""
        weight = torch.from_numpy(self.target.values()).to(self.problem.hessian)
        return Request(weight + weight @ self.problem.correction, self.curvature, self.grid)

    def is_served_by(self, request: Request, codes: Codes) -> bool:
        """Whether codes are better, by the objective, than the format's own rounding."""
        ours, nearest = codes.values(), torch.from_numpy(self.target.nearest())
        losses = [objective(request.weight, each.to(request.weight), self.problem.hessian) for each in (ours, nearest)]
        return losses[0] < losses[1]
