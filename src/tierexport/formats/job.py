"""What an artifact is written from. Not in protocol.py, so that the key of what is written covers no code that only reads."""

from collections.abc import Callable
from dataclasses import dataclass

from tierexport.base.records import NO_IMATRIX, Imatrix, Source
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import FormatPlan
from tierexport.recipe.schema import Recipe

Progress = Callable[[int], None]
"""A progress callback: called with the number of parameters (or texts, or steps) done since the last call."""


@dataclass(frozen=True)
class Job:
    """What one artifact is written from: its part of a plan, the whole plan, and what calibration found."""

    plan: FormatPlan
    made: Plan
    imatrix: Imatrix = NO_IMATRIX

    @property
    def recipe(self) -> Recipe:
        return self.made.recipe

    @property
    def source(self) -> Source:
        return self.made.source
