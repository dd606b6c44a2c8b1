"""Error feedback for tables of tokens, whose rows are looked up and not multiplied, so that no input says which columns matter.

What matters is what the pooled vector v, of unit length, makes of a changed row. With J the derivative of v by the row that a
token takes, an error e of the row moves v by |J e|², over tokens e G eᵀ, G being the mean of JᵀJ: what H is in gptq.py. A
random direction u for each text gives an estimate of it (Hutchinson 1990): the gradient g of u · v has the mean g gᵀ = JᵀJ.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tierexport.base.records import Text
from tierexport.base.workers import on_cores
from tierexport.model.batches import Batch, batches, prompted, real_rows, within
from tierexport.model.placement import row_placements
from tierexport.quantize.codes import Codes
from tierexport.quantize.gptq import Request, curvature_of, objective
from tierexport.quantize.rounding import round_matrices
from tierexport.quantize.targets import Target

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOKENS = 4096
"""Tokens whose gradients are taken: several for each direction of a row."""

BATCH_TOKENS = 512
"""Padded tokens per batch: all activations of a batch are kept for its gradients."""

CHUNK = 4096
"""Rows that are compared at a time: a table may have a quarter of a million."""


def round_tables(
    model: "SentenceTransformer", texts: Sequence[Text], targets: Sequence[Target], progress: Callable[[int], None]
) -> dict[str, Codes]:
    """The codes of every table that is to have error feedback, by tensor, without those that the format's own rounding serves
    as well. `model`: in fp32; `progress`: called with the number of parameters done since the last call.
    """
    asked = [target for target in targets if target.grid and target.tensor.layer is None]
    if not asked:
        return {}
    tables = _tables(model)
    weights = {name: _table_of(target, tables) for target in asked if (name := target.tensor.name)}
    metrics = table_metrics(model, texts, [name for name in weights.values() if name])
    found = {}
    for target in asked:
        if (metric := metrics.get(weights[target.tensor.name] or "")) is not None:
            found.update(_codes(target, metric))
        progress(target.tensor.parameters)
    return found


def _tables(model: "SentenceTransformer") -> dict[str, torch.nn.Embedding]:
    """The modules that look rows up, by the names of their weights."""
    named = model.transformers_model.named_modules()
    return {f"{name}.weight": module for name, module in named if isinstance(module, torch.nn.Embedding)}


def _table_of(target: Target, tables: Mapping[str, torch.nn.Embedding]) -> str | None:
    """The name of the weight that has all rows of a target; None where there is none."""
    values = target.values()
    placed = row_placements(values, {name: module.weight.detach().cpu() for name, module in tables.items()})
    different = len({row.tobytes() for row in values})
    return next((place.parameter for place in placed if len(set(place.rows)) == different), None)


def table_metrics(model: "SentenceTransformer", texts: Sequence[Text], names: Collection[str]) -> dict[str, torch.Tensor]:
    """G of each of the named tables that texts take rows of, float32 (columns, columns), by the name of its weight; up to a
    factor, which changes no code. `model`: in fp32; its parameters ask for no gradients from now on.
    """
    model.requires_grad_(False)
    looked_up, tables = _LookedUp(model), _tables(model)
    with ExitStack() as stack, torch.enable_grad():
        for name in names:
            for module in tables.values():
                if module.weight is tables[name].weight:  # T5 has two modules with one table
                    stack.callback(module.register_forward_hook(partial(looked_up.watch, name)).remove)
        every = batches(model, prompted(model.prompts, within(model, texts, TOKENS)), budget=BATCH_TOKENS)
        parts = [part for found in on_cores(looked_up.moments, enumerate(every)) for part in found]
    sums = {name: [each for of, each in parts if of == name] for name in names}
    return {name: torch.stack(each).mean(0).float() for name, each in sums.items() if each}


class _LookedUp:
    """The rows that texts take of tables, and the gradients of the pooled vectors by them; each worker has its own."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        self._here = threading.local()

    def watch(self, name: str, _: Any, __: Any, rows: torch.Tensor) -> torch.Tensor:
        """A hook on a table, which hands on its rows as what gradients are taken by."""
        own = rows.detach().requires_grad_()
        self._here.rows.append((name, own))
        return own

    def moments(self, numbered: tuple[int, Batch]) -> list[tuple[str, torch.Tensor]]:
        """The sum of g gᵀ over a batch's tokens for each table, float64 (columns, columns)."""
        number, batch = numbered
        self._here.rows = []
        pooled = self._model(dict(batch.features))["sentence_embedding"].float()
        if not self._here.rows:
            return []
        directions = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(number)).to(pooled)
        names, rows = zip(*self._here.rows, strict=True)
        gradients = torch.autograd.grad((torch.nn.functional.normalize(pooled) * directions).sum(), rows)
        real = [real_rows(each, batch.mask).double() for each in gradients]
        return [(name, each.T @ each) for name, each in zip(names, real, strict=True)]


def _codes(target: Target, metric: torch.Tensor) -> dict[str, Codes]:
    """A table's codes, by its name; none where the format's own rounding loses no more."""
    if not target.grid or not (curvature := curvature_of(metric)):
        return {}
    weight = torch.from_numpy(target.values()).to(metric)
    (codes,) = round_matrices([Request(weight, curvature, target.grid)])
    ours = _loss(weight, codes.values(), metric)  # one after the other: each takes as much memory as the table
    nearest = _loss(weight, torch.from_numpy(target.nearest()), metric)
    return {target.tensor.name: codes} if ours < nearest else {}


def _loss(weight: torch.Tensor, rounded: torch.Tensor, metric: torch.Tensor) -> float:
    """The objective, some rows at a time."""
    pieces = zip(torch.split(weight, CHUNK), torch.split(rounded, CHUNK), strict=True)
    return sum(objective(one, other.to(one), metric) for one, other in pieces)
