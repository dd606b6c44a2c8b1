"""What a search found: a recipe with its figures, or the curve of bytes against loss."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """A searched recipe: its GGUF's size, and the loss it is predicted to cost, the mean of 1 − cosine to fp32.

    `measured`: what it costs on other texts, the verifier's, as it was built; None before that.
    """

    recipe: Path
    bytes: int
    stored_bits: float
    predicted: float
    types: Mapping[str, str]
    measured: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As `search --json` prints it."""
        return {**asdict(self), "recipe": str(self.recipe)}


@dataclass(frozen=True)
class Point:
    """An allocation: who chose it, its file's size, its mean 1 − cosine and relative error, and the 1 − cosine predicted
    (searched ones).

    `kind` is "llama.cpp", "shipped" or "searched"; the name of a searched one is that of the point
    whose size it was to keep to, or empty.
    """

    kind: str
    name: str
    bytes: int
    stored_bits: float
    loss: float
    relative_error: float
    predicted: float | None = None


@dataclass(frozen=True)
class Frontier:
    """All points of one model."""

    model: str
    points: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """As `search --frontier --json` prints it."""
        return asdict(self)
