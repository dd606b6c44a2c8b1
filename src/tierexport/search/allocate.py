"""Spends a budget of bytes, and of time: one type per group, such that the predicted loss of all together is least.

First the least sum of what each costs alone, solved exactly as an integer program. From there one or two groups at a time
change their types as long as the predicted loss, interactions included, falls: a quadratic problem, whose optimum is not
guaranteed to be found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierexport.search.effects import Choice, Effects, Option

SCALE = 1e6
"""Losses are about 1e-5; the solver's tolerances are meant for numbers about 1."""

INFEASIBLE = 2
"""The status of scipy's milp for a problem that nothing solves."""

LEAST_GAIN = 1e-6
"""Share of the loss that an exchange has to win: less is not told from rounding errors."""

Taken = npt.NDArray[np.int64]
"""The row of the option that each group takes."""


@dataclass(frozen=True)
class Budget:
    """What may be spent: of each row of `prices`, float64 (budgets, options), in the order of the effects' rows, the sum over
    the options taken is at most its limit, float64 (budgets,).
    """

    prices: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]


def allocate(effects: Effects, budget: Budget) -> Choice | None:
    """The option of each group, within the budget; None where nothing is."""
    separate = _least(effects.rows, np.array([option.loss * SCALE for _, option in effects.rows]), budget)
    if separate is None:
        return None
    return {effects.rows[row][0]: effects.rows[row][1] for row in _Problem(effects, budget).exchanged(separate)}


def least_price(effects: Effects, budget: Budget, number: int) -> float | None:
    """The least that can be spent of one budget within the others; None where nothing is within them."""
    others = np.arange(len(budget.limits)) != number
    taken = _least(effects.rows, budget.prices[number], Budget(budget.prices[others], budget.limits[others]))
    return None if taken is None else float(budget.prices[number, taken].sum())


def _least(rows: Sequence[tuple[str, Option]], costs: npt.NDArray[np.float64], budget: Budget) -> Taken | None:
    """What is taken if costs, float64 (options,), are to add up to the least: a multiple-choice knapsack problem as an integer
    program. None where nothing is within the budget.
    """
    from scipy import optimize

    groups = _groups(rows)
    one_each = np.zeros((groups[-1] + 1, len(rows)))
    one_each[groups, range(len(rows))] = 1
    within = [optimize.LinearConstraint(budget.prices, -np.inf, budget.limits)] if len(budget.limits) else []
    solved = optimize.milp(
        costs,
        constraints=[optimize.LinearConstraint(one_each, 1, 1), *within],
        integrality=np.ones(len(rows)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    if solved.status == INFEASIBLE:
        return None
    if solved.x is None:
        raise RuntimeError(f"the solver failed: {solved.message}")
    return np.flatnonzero(solved.x > 0.5)


def _groups(rows: Sequence[tuple[str, Option]]) -> Taken:
    """The number of each option's group."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in rows))}
    return np.array([numbers[name] for name, _ in rows])


class _Problem:
    """Options with their prices and inner products, and what may be spent on them."""

    def __init__(self, effects: Effects, budget: Budget) -> None:
        self._gram, self._budget = effects.gram, budget
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
        for prices, limit in zip(self._budget.prices, self._budget.limits, strict=True):
            more = prices - prices[now]
            both = more[:, None] + more
            np.fill_diagonal(both, more)
            change[prices[taken].sum() + both > limit] = np.inf
        best = int(change.argmin())
        if change.flat[best] >= -LEAST_GAIN * loss:
            return None
        return best // len(now), best % len(now)
