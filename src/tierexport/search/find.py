"""Finds the recipe of the least loss under a budget, or the smallest whose retrieval is shown to lose less than a limit."""

import re
from collections.abc import Sequence
from pathlib import Path

from tierexport.base.errors import RecipeError
from tierexport.base.progress import note, stage
from tierexport.base.workers import HERE, Workers
from tierexport.datasets.beir import read_retrieval_set
from tierexport.model.description import FILE_NAME
from tierexport.search.found import Found
from tierexport.search.lossless import RetrievalJudge
from tierexport.search.study import MARK, Study, types_in

TOLERANCE = 0.01
"""Share of the size at which the search for the smallest ends."""

LOSS = 0.005
"""The loss of NDCG@10 that the smallest recipe's interval has to exclude, where none is named."""


def search(
    model: str, bits: float | None, size: int | None, out: Path | None, workers: Workers = HERE, max_time: float | None = None
) -> Found:
    """The recipe of least predicted loss whose GGUF takes at most `size` bytes, or `bits` per parameter, and, where that is
    named, `max_time` of the time that llama.cpp takes on this machine with a file of Q8_0.

    It is written to `out`, or to MODEL-BUDGET.toml. Raises InputError for a
    budget that nothing fits, with the smallest that something does.
    """
    if bits is not None and not 0 < bits <= 32:
        raise RecipeError(f"a budget of {bits} bits per parameter can't be met: name one between 2 and 32")
    study = Study(model, workers)
    out = out or Path(f"{study.source.name}-{f'{size}bytes' if size else f'{bits:g}bits'}.toml")
    _check_replaceable(out)
    return study.best(size or int((bits or 0) * study.parameters / 8), out, max_time)


def search_lossless(model: str, data: Sequence[str], loss: float, out: Path | None, workers: Workers = HERE) -> Found:
    """The smallest recipe for which the 95 % interval of its NDCG@10 less fp32's excludes a loss of `loss`.

    `data` names retrieval sets, whose queries are taken together. Sizes are halved until 1 % is left, which supposes that a
    larger budget is never worse; each is rounded as a build would. What more queries would allow is noted. Raises InputError.
    """
    study = Study(model, workers)
    out = out or Path(f"{study.source.name}-lossless.toml")
    _check_replaceable(out)
    judge = RetrievalJudge(study.trial.model, study.source, [read_retrieval_set(each) for each in data])
    low, high, wanting = study.smallest, study.largest, None
    with stage("Halving the budget") as running:
        while high - low > high * TOLERANCE:
            middle = (low + high) // 2
            running.say(f"Trying {8 * middle / study.parameters:.2f} bits")
            rounded = study.as_built(study.plan(types_in(study.within(middle)), "trial"))
            found = judge.difference(rounded)
            if found.ci_low > -loss:
                high = middle
            else:
                low, wanting = middle, judge.queries_for(loss, found)
    if wanting:
        note(
            f"{len(judge.reference)} queries can't exclude a loss of {loss:g} at {8 * low / study.parameters:.2f} bits; about "
            f"{wanting} might"
        )
    return study.best(high, out)


def _check_replaceable(out: Path) -> None:
    """Raises RecipeError for a name that no recipe can have, and for a file that a search did not write."""
    if not re.fullmatch(FILE_NAME, out.stem):
        raise RecipeError(f"{out} names a recipe {out.stem!r}, and a name has letters, digits, . _ - only: name another --out")
    if out.exists() and (not out.is_file() or MARK not in out.read_text("utf-8", "replace")):
        raise RecipeError(f"{out} exists and was not written by search, so it is not replaced: name another --out")
