"""Spends a budget of bytes: one type per group, the least sum of sensitivities, solved exactly."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize

from tierexport.base.errors import InputError
from tierexport.search.sensitivity import Option, Options

SCALE = 1e6
"""Sensitivities are about 1e-5; the solver's tolerances are meant for numbers about 1."""


def allocate(options: Options, budget: int, fixed: int = 0) -> dict[str, Option]:
    """The option of each group whose sensitivities have the least sum, within `budget` bytes, of which `fixed` are spent.

    Sensitivities of groups are taken to add up. That holds where they are small: a rounding error moves the
    vector in a direction of its own, 1 − cosine is half the square of the way, and squares of
    independent moves add. Raises InputError, with the smallest possible size, when nothing fits.
    """
    smallest = fixed + sum(min(each.bytes for each in found) for found in options.values())
    if budget < smallest:
        raise InputError(f"{budget:,} bytes are too few: with every tensor at its smallest type it takes {smallest:,}")
    rows = [(name, option) for name, found in options.items() for option in found]
    return {name: option for (name, option), taken in zip(rows, _solved(rows, budget - fixed), strict=True) if taken}


def _solved(rows: Sequence[tuple[str, Option]], budget: int) -> npt.NDArray[np.bool_]:
    """Which options, each with its group's name, are taken: the multiple-choice knapsack problem as an integer program."""
    names = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in rows))}
    one_each = np.zeros((len(names), len(rows)))
    one_each[[names[name] for name, _ in rows], range(len(rows))] = 1
    sizes = np.array([[option.bytes for _, option in rows]], float)
    solved = optimize.milp(
        [option.sensitivity * SCALE for _, option in rows],
        constraints=[optimize.LinearConstraint(one_each, 1, 1), optimize.LinearConstraint(sizes, 0, budget)],
        integrality=np.ones(len(rows)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    if solved.x is None:
        raise RuntimeError(f"the solver failed: {solved.message}")
    taken: npt.NDArray[np.bool_] = solved.x > 0.5
    return taken


def predicted(choice: Mapping[str, Option]) -> float:
    """The mean 1 − cosine that an allocation is expected to cause: the sum of its groups' sensitivities."""
    return sum(option.sensitivity for option in choice.values())
