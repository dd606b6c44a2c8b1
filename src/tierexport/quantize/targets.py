"""What rounding takes and what it gives, as the formats see it. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tierexport.base.records import Floats, Tensor
from tierexport.model.placement import RowPlacement

if TYPE_CHECKING:
    from tierexport.quantize.codes import Codes
    from tierexport.quantize.grids import Grid


@dataclass(frozen=True)
class Target:
    """A tensor to be rounded: its fp32 values (rows, columns), the values that the format's own rounding leaves,
    and its grid, or None where that own rounding is what it gets.
    """

    tensor: Tensor
    values: Callable[[], Floats]
    nearest: Callable[[], Floats]
    grid: "Grid | None"


@dataclass(frozen=True)
class Rounded:
    """What a model was rounded to: codes by tensor; where the rows of those in layers lie in the running model's parameters;
    and new values of parameters that stay in fp32, by the parameter's name. `tuned`: whether any of it comes from tuning.
    """

    codes: "Mapping[str, Codes]"
    places: Mapping[str, Sequence[RowPlacement]]
    fp32: Mapping[str, Floats] = field(default_factory=dict)
    tuned: bool = False


NOTHING_ROUNDED = Rounded({}, {})

TUNING_STEPS = 100
"""Steps of tuning, at most."""
