"""Spends a budget of bytes: one type per group, such that the predicted loss of all together is least.

First the least sum of what each costs alone, solved exactly as an integer program. From there one or two groups at a time
change their types as long as the predicted loss, interactions included, falls: a quadratic problem, whose optimum is not
guaranteed to be found.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import InputError
from tierexport.search.effects import Choice, Effects, Option

SCALE = 1e6
"""Losses are about 1e-5; the solver's tolerances are meant for numbers about 1."""

LEAST_GAIN = 1e-6
"""Share of the loss that an exchange has to win: less is not told from rounding errors."""

Taken = npt.NDArray[np.int64]
"""The row of the option that each group takes."""


def allocate(effects: Effects, budget: int, fixed: int = 0) -> Choice:
    """The option of each group, within `budget` bytes, of which `fixed` are spent.

    Raises InputError, with the smallest possible size, when nothing fits.
    """
    smallest = fixed + sum(min(each.bytes for each in found) for found in effects.options.values())
    if budget < smallest:
        raise InputError(f"{budget:,} bytes are too few: with every tensor at its smallest type it takes {smallest:,}")
    problem = _Problem(effects, budget - fixed)
    return {effects.rows[row][0]: effects.rows[row][1] for row in problem.exchanged(_separate(effects.rows, budget - fixed))}


def _separate(rows: Sequence[tuple[str, Option]], budget: int) -> Taken:
    """What is taken if losses simply add: the multiple-choice knapsack problem as an integer program."""
    from scipy import optimize

    groups = _groups(rows)
    one_each = np.zeros((groups[-1] + 1, len(rows)))
    one_each[groups, range(len(rows))] = 1
    sizes = np.array([[option.bytes for _, option in rows]], float)
    solved = optimize.milp(
        [option.loss * SCALE for _, option in rows],
        constraints=[optimize.LinearConstraint(one_each, 1, 1), optimize.LinearConstraint(sizes, 0, budget)],
        integrality=np.ones(len(rows)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    if solved.x is None:
        raise RuntimeError(f"the solver failed: {solved.message}")
    return np.flatnonzero(solved.x > 0.5)


def _groups(rows: Sequence[tuple[str, Option]]) -> Taken:
    """The number of each option's group."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in rows))}
    return np.array([numbers[name] for name, _ in rows])


class _Problem:
    """Options with their bytes and inner products, and the bytes that may be spent on them."""

    def __init__(self, effects: Effects, budget: int) -> None:
        self._gram, self._budget = effects.gram, budget
        self._bytes = np.array([option.bytes for _, option in effects.rows])
        self._group = _groups(effects.rows)

    def exchanged(self, taken: Taken) -> Taken:
        """What is taken once no exchange of one or two groups' options lowers the predicted loss."""
        while (pair := self._best_exchange(taken)) is not None:
            taken = taken.copy()
            for row in pair:
                taken[self._group[row]] = row
        return taken

    def _best_exchange(self, taken: Taken) -> tuple[int, int] | None:
        """The options of one group (named twice) or of two that lower the loss most in the place of those taken."""
        now = taken[self._group]  # what the group of each option takes
        loss = self._gram[np.ix_(taken, taken)].sum() / 2
        pull = self._gram[:, taken].sum(1)
        own = self._gram.diagonal()
        single = pull - pull[now] + (own - 2 * self._gram[np.arange(len(now)), now] + own[now]) / 2
        mixed = self._gram - self._gram[:, now] - self._gram[now] + self._gram[np.ix_(now, now)]
        same = self._group[:, None] == self._group
        change = np.where(same, np.inf, single[:, None] + single + mixed)
        np.fill_diagonal(change, single)
        size = self._bytes - self._bytes[now]
        both = size[:, None] + size
        np.fill_diagonal(both, size)
        change[self._bytes[taken].sum() + both > self._budget] = np.inf
        best = int(change.argmin())
        if change.flat[best] >= -LEAST_GAIN * loss:
            return None
        return best // len(now), best % len(now)
