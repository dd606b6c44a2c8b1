"""From a model and a size to a verified artifact, published where that is asked for: a search, then builds like any other."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from tierexport.base.errors import InputError
from tierexport.base.files import check_room, write_whole
from tierexport.base.outputs import check_replaceable
from tierexport.base.progress import stage
from tierexport.base.records import Source
from tierexport.datasets.calibration import text_set
from tierexport.model.languages import languages_of
from tierexport.pipeline import Build, build
from tierexport.publish.publication import Publication
from tierexport.publish.release import check_place
from tierexport.publish.several import publish
from tierexport.recipe.read import load_document
from tierexport.recipe.schema import VerifySettings
from tierexport.report.summary import summary
from tierexport.search import find
from tierexport.search.found import Found
from tierexport.search.request import Request, tag_of
from tierexport.search.study import Study
from tierexport.verify.material import read_material


@dataclass(frozen=True)
class Quantized:
    """What `quantize` left behind: what the search found, and what was built of it."""

    found: Found
    build: Build

    @property
    def summary(self) -> str:
        """Sizes, factor, cosine and retrieval in one sentence."""
        return summary(self.build.manifest, self.build.verification)

    def as_json(self) -> dict[str, Any]:
        """As `quantize --json` prints it."""
        searched = {"predicted": self.found.predicted, "measured": self.found.measured, "types": dict(self.found.types)}
        return {"summary": self.summary, "searched": searched, **self.build.as_json()}


def quantize(
    requests: Sequence[Request], out: Path | None = None, push: str | None = None, create_pr: bool = False
) -> tuple[tuple[Quantized, ...], Publication | None]:
    """Search, build and verify each size of a model and, where `push` names a place and all passed, publish them together.

    `out` is the folder of the artifact or, of several, holds a folder for each. Everything that is asked for is checked before
    anything is measured. Raises InputError or MachineError, having left nothing behind; artifacts that were built stay.
    """
    study = Study(requests[0].model)
    _check_texts(requests[0], study.source)
    if push:
        check_place(push, create_pr)
    budgets = [each.budget(study) for each in requests]
    if len({tag_of(budget) for budget in budgets}) < len(budgets):
        raise InputError("two of the sizes would have the same name: name sizes that differ in three digits")
    places = [_place(study, budget, out, len(budgets) > 1) for budget in budgets]
    for budget, place in zip(budgets, places, strict=True):
        check_replaceable(place)
        check_room(place, budget or study.least)
    done = tuple(_quantized(*each, study.source) for each in zip(requests, budgets, places, strict=True))
    passed = all(each.build.verification.passed for each in done)
    return done, publish(places, push, create_pr=create_pr) if push and passed else None


def _place(study: Study, budget: int, out: Path | None, several: bool) -> Path:
    if out is None:
        return Path("artifacts") / f"{study.source.name}-{tag_of(budget)}"
    return out / tag_of(budget) if several else out


def _quantized(asked: Request, budget: int, out: Path, source: Source) -> Quantized:
    """Search within a budget of bytes, or for the smallest where that is 0, and build what is found."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / f"{tag_of(budget)}.toml"
        if budget:
            found = find.search(asked.model, None, budget, recipe, max_time=asked.max_time)
        else:
            found = find.search_lossless(asked.model, asked.data, find.LOSS, recipe)
        write_whole(recipe, tomli_w.dumps(asked.completed(load_document(recipe), source)))
        return Quantized(found, build(recipe, out))


def _check_texts(asked: Request, source: Source) -> None:
    """Raises DataError for texts or retrieval sets that can't be used."""
    with stage("Checking the inputs"):
        text_set(asked.texts or "builtin", languages_of(source))
        read_material(VerifySettings(asked.data))
