"""Finds the recipe of the least loss under a budget, or the smallest whose retrieval is shown to lose less than a limit."""

import re
from collections.abc import Sequence
from pathlib import Path

from tierexport.base.errors import InputError, RecipeError
from tierexport.base.progress import note, stage
from tierexport.base.workers import HERE, Workers
from tierexport.datasets.beir import read_retrieval_set
from tierexport.formats import format_named
from tierexport.model.description import FILE_NAME
from tierexport.search.found import Found
from tierexport.search.lossless import RetrievalJudge
from tierexport.search.study import MARK, Study, types_in

TOLERANCE = 0.01
"""Share of the size at which the search for the smallest ends."""

LOSS = 0.005
"""The loss of NDCG@10 that the smallest recipe's interval has to exclude, where none is named."""


def search(
    model: str, bits: float | None, size: int | None, out: Path | None, workers: Workers = HERE, max_time: float | None = None,
    fmt: str = "gguf",
) -> Found:  # fmt: skip
    """The recipe of least predicted loss whose file takes at most `size` bytes, or `bits` per parameter, and, where that is
    named, `max_time` of the time that llama.cpp takes on this machine with a file of Q8_0.

    It is written to `out`, or to MODEL-BUDGET.toml. Raises InputError for a
    budget that nothing fits, with the smallest that something does.
    """
    if bits is not None and not 0 < bits <= 32:
        raise RecipeError(f"a budget of {bits} bits per parameter can't be met: name one between 2 and 32")
    studies = studies_of(model, workers, fmt)
    out = out or Path(f"{studies[0].source.name}-{f'{size}bytes' if size else f'{bits:g}bits'}.toml")
    _check_replaceable(out)
    budget = size or int((bits or 0) * studies[0].parameters / 8)
    return fitting(studies, budget).best(budget, out, max_time)


def search_lossless(
    model: str, data: Sequence[str], loss: float, out: Path | None, workers: Workers = HERE, fmt: str = "gguf"
) -> Found:
    """The smallest recipe for which the 95 % interval of its NDCG@10 less fp32's excludes a loss of `loss`.

    `data` names retrieval sets, whose queries are taken together. Sizes are halved until 1 % is left, which supposes that a
    larger budget is never worse; each is rounded as a build would. What more queries would allow is noted. Raises InputError.
    """
    studies = studies_of(model, workers, fmt)
    first = studies[0]
    out = out or Path(f"{first.source.name}-lossless.toml")
    _check_replaceable(out)
    judge = RetrievalJudge(first.trial.model, first.source, [read_retrieval_set(each) for each in data])
    low, high, wanting = min(study.smallest for study in studies), first.largest, None
    with stage("Halving the budget") as running:
        while high - low > high * TOLERANCE:
            middle = (low + high) // 2
            running.say(f"Trying {8 * middle / first.parameters:.2f} bits")
            study = fitting(studies, middle)
            rounded = study.as_built(study.plan(types_in(study.within(middle)), "trial"))
            found = judge.difference(rounded)
            if found.ci_low > -loss:
                high = middle
            else:
                low, wanting = middle, judge.queries_for(loss, found)
    if wanting:
        note(
            f"{len(judge.reference)} queries can't exclude a loss of {loss:g} at {8 * low / first.parameters:.2f} bits; about "
            f"{wanting} might"
        )
    return fitting(studies, high).best(high, out)


def studies_of(model: str, workers: Workers, fmt: str) -> list[Study]:
    """A study of each of a format's layouts. Raises InputError where the format offers nothing to choose."""
    layouts = format_named(fmt).choices
    if not layouts:
        raise InputError(f"{fmt} offers no types to choose from: a recipe says what is built")
    return [Study(model, workers, fmt, layout) for layout in range(len(layouts))]


def fitting(studies: Sequence[Study], budget: int) -> Study:
    """The first of a model's studies that has a file of so many bytes, or the last, which has the smallest."""
    return next((study for study in studies if study.smallest <= budget), studies[-1])


def _check_replaceable(out: Path) -> None:
    """Raises RecipeError for a name that no recipe can have, and for a file that a search did not write."""
    if not re.fullmatch(FILE_NAME, out.stem):
        raise RecipeError(f"{out} names a recipe {out.stem!r}, and a name has letters, digits, . _ - only: name another --out")
    if out.exists() and (not out.is_file() or MARK not in out.read_text("utf-8", "replace")):
        raise RecipeError(f"{out} exists and was not written by search, so it is not replaced: name another --out")
