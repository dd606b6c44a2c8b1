"""Bytes against loss: searched sizes beside the shipped recipes and llama.cpp's stock types."""

from collections.abc import Sequence

import numpy as np

from tierexport.base.progress import stage
from tierexport.base.records import Floats, Text, bits_per_parameter
from tierexport.base.shipped import shipped
from tierexport.datasets.calibration import screen
from tierexport.metrics.relative_error import Changes
from tierexport.metrics.similarity import Similarity
from tierexport.recipe.plan import Plan
from tierexport.search.found import Frontier, Point
from tierexport.search.stock import STOCK
from tierexport.search.study import Study, types_in

CURVE_POINTS = 12
"""Sizes searched along the curve, beside those of the points with names."""


def frontier(model: str) -> Frontier:
    """Bytes against loss on unseen sentences: searched sizes, shipped recipes, llama.cpp's stock types.

    A searched point that bears a name takes at most the size of what else is so named. All have the
    same importance and are judged on the same sentences; ours are rounded as a build would, layer by
    layer. Raises InputError or MachineError.
    """
    study = Study(model)
    points = _Points(study)
    named = [points.stock(native) for native in STOCK]
    named += [points.built("shipped", path.stem, study.shipped(path)) for path in sorted(shipped("recipes").glob("*.toml"))]
    return Frontier(study.source.name, (*named, *_curve(study, points, named)))


class _Points:
    """Points of one model, all judged on the same sentences."""

    def __init__(self, study: Study) -> None:
        texts = [Text(text, "passage") for text in screen()]
        self._study = study
        self._trial = study.trial_on(texts)

    def stock(self, native: str) -> Point:
        """The point of a stock type of llama.cpp."""
        size, types = self._study.stock(native)
        with self._trial.rounded(types):
            return self._point("llama.cpp", native, size, self._trial.encode(self._trial.model))

    def built(self, kind: str, name: str, made: Plan, expected: float | None = None) -> Point:
        """The point of a plan, rounded as a build would; `expected`: the loss predicted for it."""
        size, rounded = self._study.as_built(made)
        return self._point(kind, name, size, self._trial.encode(rounded), expected)

    def _point(self, kind: str, name: str, size: int, vectors: Floats, expected: float | None = None) -> Point:
        """The point of a file of so many bytes, by the vectors of the model as it is in it, float32 (texts, dimensions)."""
        changes = Changes.between(self._trial.reference, vectors, Similarity.of(self._study.source))
        return Point(
            kind=kind,
            name=name,
            bytes=size,
            stored_bits=bits_per_parameter(size, self._study.parameters),
            loss=float(self._trial.loss(vectors).mean()),
            relative_error=changes.relative_error,
            predicted=expected,
        )


def _curve(study: Study, points: _Points, named: Sequence[Point]) -> list[Point]:
    """Searched points: at CURVE_POINTS sizes, and at the sizes of the points with names."""
    largest = max(each.bytes for each in named)
    budgets = [("", int(size)) for size in np.geomspace(study.smallest, largest, CURVE_POINTS)]
    budgets += [(each.name, each.bytes) for each in named if each.bytes >= study.smallest]
    curve = []
    with stage("Building along the curve") as running:
        running.total(len(budgets))
        for name, budget in budgets:
            choice = study.within(budget)
            made = study.plan(types_in(choice), "searched")
            curve.append(points.built("searched", name, made, study.effects.predicted(choice)))
            running.step()
    return curve
