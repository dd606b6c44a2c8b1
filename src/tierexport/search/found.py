"""What a search found: a recipe with its figures, the curve of bytes against loss, or a codec for vectors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """A searched recipe: its GGUF's size, and the loss it is predicted to cost, the mean of 1 − cosine to fp32.

    `measured`: what it costs on other texts, the verifier's, as it was built; None before that. `time`: that of llama.cpp on
    the machine of the search, as a share of what a file of Q8_0 takes; None where none was asked for.
    """

    recipe: Path
    bytes: int
    stored_bits: float
    predicted: float
    types: Mapping[str, str]
    measured: float | None = None
    time: float | None = None

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
    """All points of one model in one format."""

    model: str
    format: str
    points: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """As `search --frontier --json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class CodecPoint:
    """A codec, judged on queries that it was not chosen by: NDCG@10 of fp32 and the difference to it, with its 95 % interval;
    the share of fp32's exact ten nearest that it finds, among the first ten and by rescoring. Each set weighs the same.
    """

    level: str
    scaling: str
    kept: int
    widen: int
    rotate: bool
    asymmetric: bool
    bytes: int
    reference_ndcg_at_10: float
    delta: float
    ci_low: float
    ci_high: float
    recall: float
    rescored: float

    @property
    def name(self) -> str:
        """What tables and pictures call it."""
        wider = f", {self.widen} × as wide" if self.widen > 1 else ""
        return f"{self.level} {self.scaling}, {self.kept} dimensions{wider}{', rotated' if self.rotate else ''}"


@dataclass(frozen=True)
class FoundCodec:
    """The frontier of a model's codecs, smallest first, the last being the best of at most `budget` bytes; how many were tried,
    and on which sets.
    """

    model: str
    budget: int
    tried: int
    sets: tuple[str, ...]
    points: tuple[CodecPoint, ...]

    def as_json(self) -> dict[str, Any]:
        """As `vectors search --json` prints it."""
        return asdict(self)
