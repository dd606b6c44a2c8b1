"""Measures what each group does at each type, rounded as a build rounds it, with error feedback for fp32's inputs, and
multiplied as llama.cpp does it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tierexport.base.digests import value_digest
from tierexport.base.records import Floats, Text
from tierexport.base.stages import Stages
from tierexport.formats.choices import Choices
from tierexport.quantize.gptq import Curvature, Request, curvature_of, objective
from tierexport.quantize.inputs import gathered_fp32
from tierexport.quantize.passes import Passes, Step, layer_modules
from tierexport.quantize.rounding import round_matrices
from tierexport.quantize.tables import table_metrics
from tierexport.search.effects import Effects, Option, joined, write_effects
from tierexport.search.groups import Group
from tierexport.search.trial import TrialModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Calibrated:
    """A model in fp32, the texts that rounding reads, and the names of its parameters that a format keeps in fp32."""

    model: "SentenceTransformer"
    texts: Sequence[Text]
    kept: frozenset[str]


@dataclass(frozen=True)
class Metric:
    """H of a weight's inputs, or G of a table, float32 (columns, columns)."""

    hessian: torch.Tensor

    @cached_property
    def curvature(self) -> Curvature | None:
        """What error feedback needs of it."""
        return curvature_of(self.hessian)


@dataclass(frozen=True)
class Seen:
    """By what the rounding of a group is judged; and the mean of its inputs, float32 (columns,), where its biases make up for
    what that loses.
    """

    metric: Metric
    mean: torch.Tensor | None = None


def measure(
    groups: Sequence[Group],
    trial: Callable[[], TrialModel],
    calibrated: Callable[[], Calibrated],
    stages: Stages,
    key: str,
    progress: Callable[[int], None],
) -> Effects:
    """What every group alone does at every type that is worth its bytes. Each group is kept in `stages` once it is done.

    `trial` and `calibrated` are called when something has to be measured. `progress`: called with the number of groups done
    since the last call.
    """
    names = {group.name: _stage_of(group, key) for group in groups}
    waiting = unmeasured(groups, stages, key)
    progress(len(groups) - len(waiting))
    if waiting:
        measuring = trial()
        layers = layer_modules(measuring.model.transformers_model)
        weights = {group.name: _weights(measuring, group) for group in waiting}
        every = _in_turn(waiting, weights, calibrated())
        for layer, here in itertools.groupby(every, lambda each: each[0].layer or 0):
            with measuring.beyond(layers[:layer]):
                for group, seen in here:
                    stages.run(names[group.name], key, partial(_measure, measuring, group, seen))
                    progress(1)
    return joined({name: stages.root / stage for name, stage in names.items()})


def unmeasured(groups: Sequence[Group], stages: Stages, key: str) -> list[Group]:
    """The groups that have no effects in `stages` yet."""
    return [group for group in groups if (stages.record(_stage_of(group, key)) or {}).get("key") != key]


def _stage_of(group: Group, key: str) -> str:
    return f"effects-{value_digest([key, group.name])[:16]}"


def _weights(trial: TrialModel, group: Group) -> frozenset[str]:
    """The names of the parameters that a group's tensors lie in."""
    return frozenset(place.parameter for tensor in group.tensors for place in trial.places[tensor.name])


def _in_turn(
    groups: Sequence[Group], weights: Mapping[str, frozenset[str]], calibrated: Calibrated
) -> Iterator[tuple[Group, Seen | None]]:
    """Every group with what its rounding is judged by; None where nothing is known of what its weights get.

    `weights`: the names of the parameters that each group's tensors lie in, by the group's name.
    """
    outside = [group for group in groups if group.layer is None]
    tables = [name for group in outside if group.role == "token_embeddings" for name in weights[group.name]]
    metrics = table_metrics(calibrated.model, calibrated.texts, tables) if tables else {}
    for group in outside:
        known = next((metrics[name] for name in weights[group.name] if name in metrics), None)
        yield group, None if known is None else Seen(Metric(known))
    waiting = [group for group in groups if group.layer is not None]
    passes = Passes(calibrated.model, calibrated.texts)
    with passes.running():
        for step in _steps(passes):
            here = [group for group in waiting if weights[group.name] <= set(step.names)]
            if here and (found := gathered_fp32(passes, step)):
                waiting = [group for group in waiting if group not in here]
                centred, plain, mean = Metric(found[0]), Metric(torch.addr(found[0], found[1], found[1])), found[1]
                for group in here:
                    corrected = {_bias_of(name) for name in weights[group.name]} <= calibrated.kept
                    yield group, Seen(centred, mean) if corrected else Seen(plain)
    for group in waiting:
        yield group, None


def _bias_of(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _steps(passes: Passes) -> Iterator[Step]:
    """The steps of passes in fp32, which have all they need to get to each, and beyond it."""
    passes.keep_exact(0)
    for layer in range(len(passes.layers)):
        passes.keep_exact(layer + 1)
        yield from (step for step in passes.steps if step.layer == layer)
        if later := [step for step in passes.steps if step.layer > layer]:
            passes.advance(later[0], rounded=False)
        passes.drop_exact(layer)


Rows = dict[str, torch.Tensor]
"""New values of tensors, by name."""


def _measure(trial: TrialModel, group: Group, seen: Seen | None, folder: Path) -> None:
    """Write the options of a group that are worth their bytes, and how each moves the vectors."""
    choices, exact = trial.choices, trial.choices.exact
    nearest = {
        native: {tensor.name: trial.nearest(tensor.name, native) for tensor in group.tensors}
        for native in group.bytes
        if native != exact
    }
    if seen:
        for native in _dominated(group, choices, {native: _loss(trial, rows, seen) for native, rows in nearest.items()}):
            del nearest[native]
    rounded = _fed_back(trial, group, nearest, seen) if seen else nearest
    moves = {
        native: trial.moves(rows, _biases(trial, rows, seen), choices.input_block(native)) for native, rows in rounded.items()
    }
    moves = {native: each for native, each in moves.items() if np.isfinite(each).all()}  # fp16 can't hold all values
    if exact and exact in group.bytes:
        moves[exact] = np.zeros_like(trial.reference)
    options = [Option(native, group.bytes[native], _cost(each)) for native, each in moves.items()]
    write_effects(folder, options, list(moves.values()))


def _cost(moves: Floats) -> float:
    """The mean over texts of |Δ|²/2, which is 1 - cosine."""
    return float(np.square(moves, dtype=np.float64).sum(1).mean()) / 2


def _loss(trial: TrialModel, rows: Rows, seen: Seen) -> float:
    """The objective of gptq.py over a group's tensors."""
    return sum(objective(trial.rows(tensor), values, seen.metric.hessian) for tensor, values in rows.items())


def _dominated(group: Group, choices: Choices, losses: Mapping[str, float]) -> list[str]:
    """Types that another has no more bytes and no more loss than, rounded to nearest, and no larger blocks of inputs; but for
    one whose loss error feedback can lower, only by others of which it can.
    """

    fed_back = {native for native in losses if any(choices.grid(tensor, native) for tensor in group.tensors)}
    blocks = {native: choices.input_block(native) or 0 for native in losses}

    def beats(one: str, other: str) -> bool:
        sizes = group.bytes[one], group.bytes[other]
        no_worse = sizes[0] <= sizes[1] and losses[one] <= losses[other] and blocks[one] <= blocks[other]
        comparable = one in fed_back or other not in fed_back
        return no_worse and comparable and (sizes[0], losses[one], one) < (sizes[1], losses[other], other)

    return [other for other in losses if any(beats(one, other) for one in losses)]


def _fed_back(trial: TrialModel, group: Group, nearest: Mapping[str, Rows], seen: Seen) -> dict[str, Rows]:
    """What a build makes of a group's tensors at each type: codes by error feedback where they serve better."""
    found = {native: dict(rows) for native, rows in nearest.items()}
    if (curvature := seen.metric.curvature) is None:
        return found
    for tensor in group.tensors:
        weight = trial.rows(tensor.name)
        grids = {native: grid for native in nearest if (grid := trial.choices.grid(tensor, native))}
        codes = round_matrices([Request(weight, curvature, grid) for grid in grids.values()])
        for native, values in zip(grids, (each.values() for each in codes), strict=True):
            ours, plain = (objective(weight, tried, seen.metric.hessian) for tried in (values, found[native][tensor.name]))
            if ours < plain:
                found[native][tensor.name] = values
    return found


def _biases(trial: TrialModel, rows: Rows, seen: Seen | None) -> Rows:
    """The biases that make up for what the mean of inputs loses by these values of tensors, by the parameter's name."""
    if seen is None or seen.mean is None:
        return {}
    found: Rows = {}
    for tensor, values in rows.items():
        change = (trial.rows(tensor) - values) @ seen.mean
        for place in trial.places[tensor]:
            name = _bias_of(place.parameter)
            bias = found.get(name, trial.parameters[name].data)
            found[name] = bias.index_add(0, torch.tensor(place.into), change[place.rows])
    return found
