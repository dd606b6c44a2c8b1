"""Bytes against loss: searched sizes beside the shipped recipes and llama.cpp's stock types, each file read by llama.cpp."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from tierexport.base.progress import stage
from tierexport.base.records import bits_per_parameter
from tierexport.base.shipped import shipped
from tierexport.base.workers import HERE, Workers
from tierexport.datasets.calibration import screen
from tierexport.metrics.relative_error import Changes
from tierexport.metrics.similarity import Similarity, cosines
from tierexport.model.reference import Reference
from tierexport.recipe.plan import Plan
from tierexport.recipe.read import read_recipe
from tierexport.search.find import fitting, studies_of
from tierexport.search.found import Frontier, Point
from tierexport.search.study import Study, types_in
from tierexport.verify.opened import Judged, OpenArtifact

CURVE_POINTS = 6
"""Sizes searched along the curve, beside those of the points with names."""


def frontier(model: str, workers: Workers = HERE, fmt: str = "gguf") -> Frontier:
    """Bytes against loss on unseen sentences: searched sizes, shipped recipes, and, for GGUFs, llama.cpp's stock types.

    A searched point that bears a name takes at most the size of what else is so named. All have the same importance, are
    written as files, ours as a build would, and judged on the same sentences as their users open them. Raises InputError or
    MachineError.
    """
    studies = studies_of(model, workers, fmt)
    study = studies[0]
    points = _Points(study)
    named = [points.stock(native) for native in study.choices.stock]
    recipes = map(read_recipe, sorted(shipped("recipes").glob("*.toml")))
    named += [points.built("shipped", each.name, study.shipped(each)) for each in recipes if study.format.name in each.formats]
    return Frontier(study.source.name, study.format.name, (*named, *_curve(studies, points, named)))


class _Points:
    """Points of one model, all judged on the same sentences."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._reference = Reference(study.source)
        self._texts = screen()

    def stock(self, native: str) -> Point:
        """The point of a stock type of llama.cpp."""
        with tempfile.TemporaryDirectory() as scratch:
            return self._point("llama.cpp", native, self._study.stock(native, Path(scratch)))

    def built(self, kind: str, name: str, made: Plan, expected: float | None = None) -> Point:
        """The point of a plan, written as a build would; `expected`: the loss predicted for it."""
        with tempfile.TemporaryDirectory() as scratch:
            return self._point(kind, name, self._study.built(made, Path(scratch)), expected)

    def _point(self, kind: str, name: str, path: Path, expected: float | None = None) -> Point:
        """The point of an artifact. Raises ArtifactError where it fails."""
        reference = self._reference.encode("sentences", "passage", self._texts).vectors
        with closing(OpenArtifact(Judged(self._study.format.name, path), "cpu", self._reference)) as opened:
            vectors = opened.encode("sentences", "passage", self._texts).vectors
        size = self._study.format.weight_bytes(path)
        return Point(
            kind=kind,
            name=name,
            bytes=size,
            stored_bits=bits_per_parameter(size, self._study.parameters),
            loss=float((1 - cosines(reference, vectors)).mean()),
            relative_error=Changes.between(reference, vectors, Similarity.of(self._study.source)).relative_error,
            predicted=expected,
        )


def _curve(studies: Sequence[Study], points: _Points, named: Sequence[Point]) -> list[Point]:
    """Searched points: at CURVE_POINTS sizes, and at the sizes of the points with names."""
    largest = max(each.bytes for each in named)
    smallest = min(study.smallest for study in studies)
    budgets = [("", int(size)) for size in np.geomspace(smallest, largest, CURVE_POINTS)]
    budgets += [(each.name, each.bytes) for each in named if each.bytes >= smallest]
    curve = []
    with stage("Building along the curve") as running:
        running.total(len(budgets))
        for name, budget in budgets:
            study = fitting(studies, budget)
            choice = study.within(budget)
            made = study.plan(types_in(choice), "searched")
            curve.append(points.built("searched", name, made, study.effects.predicted(choice)))
            running.step()
    return curve
