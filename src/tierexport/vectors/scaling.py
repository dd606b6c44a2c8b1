"""Chooses a codec's bounds from vectors, read in batches."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.recipe.choices import SCALINGS
from tierexport.vectors.codecs import CELLS, Codec

MOMENTUM = 0.99
"""What a moving statistic keeps at each batch."""

SPREADS = {"int8": 4.0, "int4": 2.5, "trinary": 1.84, "binary": 1.6}
"""Half a range in standard deviations: near the uniform quantizer of least squared error for a normal distribution with so
many cells (Max 1960, doi 10.1109/TIT.1960.1057548)."""

FEW_CELLS = 3
"""Levels of at most so many cells have their ranges around zero."""

BATCH = 256
"""Vectors of a batch; the last one has between 128 and 383, for the deviation of a few vectors is no estimate."""

TRIED_SPREADS = np.linspace(0.4, 1.6, 25)
"""Multiples of SPREADS among which "clip" takes the best."""


@dataclass
class Moments:
    """Least, greatest, moving mean and moving standard deviation of each dimension, float64 (dimensions,)."""

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    batches: int = 1

    def add(self, batch: Floats) -> None:
        """One more batch; the first hundred are averaged evenly, so that the first does not count for more."""
        keep = min(MOMENTUM, self.batches / (self.batches + 1))
        self.low = np.minimum(self.low, batch.min(0))
        self.high = np.maximum(self.high, batch.max(0))
        self.mean = keep * self.mean + (1 - keep) * batch.mean(0, dtype=np.float64)
        self.deviation = keep * self.deviation + (1 - keep) * batch.std(0, dtype=np.float64)
        self.batches += 1


def moments(batches: Iterable[Floats]) -> Moments:
    """The moments over all batches, float32 (vectors, dimensions) each; at least one."""
    first, *others = batches
    mean, deviation = first.mean(0, dtype=np.float64), first.std(0, dtype=np.float64)
    found = Moments(first.min(0).astype(np.float64), first.max(0).astype(np.float64), mean, deviation)
    for batch in others:
        found.add(batch)
    return found


def fit(
    vectors: Floats,
    level: str,
    scaling: str,
    per_vector: bool = False,
    rotation: Floats | None = None,
    similarity: str = "cosine",
) -> Codec:
    """A codec whose bounds come from two vectors or more, float32 (vectors, dimensions), in batches of about BATCH.

    Their lengths have to be those of the vectors that will be coded: unit length where they are compared by cosine.

    "minmax": from least to greatest. "rolling": around the moving mean, by so many moving standard deviations as suit a
    normal distribution. "clip": as "rolling", by the multiple that gives the least squared error on these vectors, one for
    all dimensions. binary's border is the middle of the range, so its ranges, and trinary's, lie around zero.
    Raises VectorError.
    """
    _check(vectors, level, scaling)
    blank = np.zeros(vectors.shape[1] if rotation is None else rotation.shape[1], np.float32)
    plain = Codec(level, blank, blank, per_vector, rotation, similarity=similarity)
    prepared = plain.prepared(vectors)
    found = moments(_batches(prepared))
    if per_vector:  # one range for all dimensions, since a vector has one scale
        found = _overall(found)
    if scaling == "minmax":
        return _bounded(plain, *_extremes(found, level))
    if scaling == "rolling":
        return _bounded(plain, *_around(found, level, 1.0))
    tried = [_bounded(plain, *_around(found, level, factor)) for factor in TRIED_SPREADS]
    return min(tried, key=lambda codec: _error(codec, prepared))


def _check(vectors: Floats, level: str, scaling: str) -> None:
    """Raises VectorError for a level or scaling that is not known, and for vectors that no codec can be fitted on."""
    if scaling not in SCALINGS:
        raise VectorError(f"{scaling!r} is no way to choose bounds: {', '.join(SCALINGS)}")
    if level not in CELLS:
        raise VectorError(f"{level!r} is no level: {', '.join(CELLS)}")
    if len(vectors) < 2:
        raise VectorError(f"a codec is fitted on two vectors at least, and here is {len(vectors)}")
    if not np.isfinite(vectors).all():
        raise VectorError("vectors to fit a codec on hold NaN or infinity")


def _batches(vectors: Floats) -> Iterator[Floats]:
    """Vectors in batches of BATCH, the last one of another size."""
    last = max(len(vectors) - BATCH // 2, 0) // BATCH * BATCH
    for first in range(0, last, BATCH):
        yield vectors[first : first + BATCH]
    yield vectors[last:]


def _overall(found: Moments) -> Moments:
    """The same for all dimensions together."""
    deviation = np.sqrt(np.mean(np.square(found.deviation) + np.square(found.mean)))
    values = (found.low.min(), found.high.max(), found.mean.mean(), deviation)
    low, high, mean, spread = (np.full_like(found.low, value) for value in values)
    return Moments(low, high, mean, spread)


def _extremes(found: Moments, level: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least and greatest value, or for levels of few cells the greatest magnitude on both sides of zero."""
    if CELLS[level] > FEW_CELLS:
        return found.low, found.high
    high = np.maximum(np.abs(found.low), np.abs(found.high))
    return -high, high


def _around(found: Moments, level: str, factor: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """So many times SPREADS around the mean, or for levels of few cells around zero."""
    few = CELLS[level] <= FEW_CELLS
    middle = 0 if few else found.mean
    spread = np.sqrt(np.square(found.deviation) + np.square(found.mean)) if few else found.deviation
    half = SPREADS[level] * factor * spread
    return middle - half, middle + half


def _bounded(plain: Codec, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> Codec:
    """A codec with these bounds."""
    return replace(plain, low=low.astype(np.float32), high=high.astype(np.float32))


def _error(codec: Codec, prepared: Floats) -> float:
    """Mean squared error over prepared vectors."""
    plain = Codec(codec.level, codec.low, codec.high)
    return float(np.square(plain.values(plain.numbers(prepared)) - prepared).mean())


def widening(dimensions: int, times: int, rotate: bool) -> Floats | None:
    """The matrix that a vector is multiplied with before it is coded, for an expansion factor of `times`: float32
    (dimensions, times · dimensions), its rows orthonormal.

    The vector itself, or a random rotation of it, and beside it other rotations: twice as many signs halve what binary loses.
    None where the vector stays as it is.
    """
    bases = [random_rotation(dimensions, seed) for seed in range(times)]
    if not rotate:
        bases[0] = np.eye(dimensions, dtype=np.float32)
    return None if times == 1 and not rotate else np.concatenate(bases, 1) / np.float32(np.sqrt(times))


def random_rotation(dimensions: int, seed: int = 0) -> Floats:
    """An orthogonal matrix, float32 (dimensions, dimensions): it spreads a vector's weight evenly over its dimensions."""
    found, upper = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimensions, dimensions)))
    rotation: Floats = (found * np.sign(np.diagonal(upper))).astype(np.float32)
    return rotation
