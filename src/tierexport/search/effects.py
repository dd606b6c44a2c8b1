"""What rounding each group alone does to the pooled vectors, and what any choice of types does by that.

The rounded vector of a text, of unit length, is moved by Δ, and 1 - cosine is |Δ|²/2. To first order the moves of groups add,
so that a choice costs the mean over texts of |Σ Δ|²/2 = Σ Σ G/2, G being the mean inner product of the moves of two options:
beside what each group costs alone, how far they move the vectors the same way or against each other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tierexport.base.records import Floats

Moments = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """A native type for a group: its bytes in the file, and the mean 1 - cosine that it alone causes."""

    native: str
    bytes: int
    loss: float


Choice = Mapping[str, Option]
"""An option for each group, by the group's name."""


@dataclass(frozen=True)
class Effects:
    """Every option of every group, by the group's name, and `gram`: G of any two, float64 (options, options), in that order."""

    options: Mapping[str, tuple[Option, ...]]
    gram: Moments

    @cached_property
    def rows(self) -> list[tuple[str, Option]]:
        """Every option with the name of its group, in G's order."""
        return [(name, option) for name, found in self.options.items() for option in found]

    def predicted(self, choice: Choice) -> float:
        """The mean 1 - cosine that a choice is expected to cause."""
        taken = [number for number, (name, option) in enumerate(self.rows) if choice[name] is option]
        return float(self.gram[np.ix_(taken, taken)].sum()) / 2


def joined(folders: Mapping[str, Path]) -> Effects:
    """The effects that `write_effects` wrote for each group, by the group's name."""
    options = {name: _read_options(folder) for name, folder in folders.items()}
    moves = [np.load(folder / "moves.npy", mmap_mode="r") for folder in folders.values()]
    return Effects(options, np.block([[_inner(one, other) for other in moves] for one in moves]))


def write_effects(folder: Path, options: Sequence[Option], moves: Sequence[Floats]) -> None:
    """Write a group's options, and for each how it moves the vectors, float32 (texts, dimensions)."""
    (folder / "options.json").write_text(json.dumps([asdict(each) for each in options]))
    np.save(folder / "moves.npy", np.stack(moves).astype(np.float16))


def _read_options(folder: Path) -> tuple[Option, ...]:
    return tuple(Option(**each) for each in json.loads((folder / "options.json").read_text()))


def _inner(one: npt.NDArray[np.float16], other: npt.NDArray[np.float16]) -> Moments:
    """The mean over texts of the inner products of moves, float64 (options of one, options of the other)."""
    texts = one.shape[1]
    rows = [np.asarray(each, np.float32).reshape(len(each), -1) for each in (one, other)]
    found: Moments = (rows[0] @ rows[1].T).astype(np.float64) / texts
    return found
