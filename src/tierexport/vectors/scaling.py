"""Chooses a codec's bounds from vectors, read in batches."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.metrics.similarity import Doubles
from tierexport.recipe.choices import SCALINGS
from tierexport.vectors.codecs import CELLS, TOP, Codec
from tierexport.vectors.tables import Table, lloyd_table, quantile_table

MOMENTUM = 0.99
"""What a moving statistic keeps at each batch."""

SPREADS = {"int8": 4.0, "int4": 2.5, "int3": 2.34, "int2": 1.99, "trinary": 1.84, "binary": 1.6}
"""Half a range in standard deviations: near the uniform quantizer of least squared error for a normal distribution with so
many cells (Max 1960, doi 10.1109/TIT.1960.1057548)."""

FEW_CELLS = 3
"""Levels of at most so many cells have their ranges around zero, for a mean near it is that of the texts more than the model's;
around a mean that is far they lie as well."""

FAR = 0.5
"""The least distance of such a mean from zero, in standard deviations."""

BATCH = 256
"""Vectors of a batch; the last one has between 128 and 383, for the deviation of a few vectors is no estimate."""

TABLES = {"quantile": quantile_table, "lloyd": lloyd_table}
"""Scalings that give each dimension cells of any width."""

TABLED_CELLS = 16
"""Levels of more cells have no tables: a few hundred vectors tell nothing of each."""

TRIED_SPREADS = np.linspace(0.4, 1.6, 25)
"""Multiples of SPREADS among which "clip" takes the best."""


@dataclass
class Moments:
    """Least, greatest, moving mean and moving standard deviation of each dimension, float64 (dimensions,)."""

    low: Doubles
    high: Doubles
    mean: Doubles
    deviation: Doubles
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
    dimensions: int | None = None,
    far: float = FAR,
) -> Codec:
    """A codec whose bounds come from two vectors or more, float32 (vectors, dimensions), in batches of about BATCH.

    Their lengths have to be those of the vectors that will be coded: unit length where they are compared by cosine.
    `dimensions`: how many of the first are kept, all where it is None; `rotation` then is of these.

    "minmax": from least to greatest. "rolling": around the moving mean, by so many moving standard deviations as suit a
    normal distribution. "clip": as "rolling", by the multiple that gives the least squared error on these vectors, one for
    all dimensions. binary's border is the middle of the range, so its ranges and trinary's lie around zero, unless the mean
    is `far` from it, in standard deviations; so does the one range that all dimensions have `per_vector`, at every level.
    "quantile": cells of equal shares of the vectors. "lloyd": cells of the least squared error.
    Raises VectorError.
    """
    _check(vectors, level, scaling)
    given = vectors.shape[1]
    kept = given if dimensions is None else dimensions
    if not 0 < kept <= given:
        raise VectorError(f"vectors of {given} dimensions have no first {kept}")
    blank = np.zeros(kept if rotation is None else rotation.shape[1], np.float32)
    cut_from = given if kept < given else None
    plain = Codec(level, blank, blank, per_vector, rotation, similarity=similarity, cut_from=cut_from)
    prepared = plain.prepared(vectors)
    if scaling in TABLES:
        return _tabled(plain, scaling, prepared)
    found = moments(_batches(prepared))
    if per_vector:  # one range for all dimensions, since a vector has one scale
        found = _overall(found, far)
    if scaling == "minmax":
        return _bounded(plain, *_extremes(found, level, far))
    if scaling == "rolling":
        return _bounded(plain, *_around(found, level, far, 1.0))
    tried = [_bounded(plain, *_around(found, level, far, factor)) for factor in TRIED_SPREADS]
    return min(tried, key=lambda codec: _error(codec, prepared))


def takes(level: str, scaling: str) -> bool:
    """Whether a level's cells can be fitted so."""
    return scaling not in TABLES or TOP[level] < TABLED_CELLS


def _check(vectors: Floats, level: str, scaling: str) -> None:
    """Raises VectorError for a level or scaling that is not known, and for vectors that no codec can be fitted on."""
    if scaling not in SCALINGS:
        raise VectorError(f"{scaling!r} is no way to choose bounds: {', '.join(SCALINGS)}")
    if level not in CELLS:
        raise VectorError(f"{level!r} is no level: {', '.join(CELLS)}")
    if not takes(level, scaling):
        raise VectorError(
            f"{level} has too many cells to fit each: scaling {scaling!r} is for levels of {TABLED_CELLS} at most"
        )
    if len(vectors) < 2:
        raise VectorError(f"a codec is fitted on two vectors at least, and here is {len(vectors)}")
    if not np.isfinite(vectors).all():
        raise VectorError("vectors to fit a codec on hold NaN or infinity")


def _tabled(plain: Codec, scaling: str, prepared: Floats) -> Codec:
    """A codec whose cells a table holds; per vector, one row for all dimensions."""
    values = prepared.reshape(-1, 1) if plain.per_vector else prepared
    found = TABLES[scaling](values, TOP[plain.level] + 1)
    if plain.per_vector:
        found = Table(*(np.repeat(each, plain.width, 0) for each in (found.borders, found.centers)))
    return replace(plain, low=found.low, high=found.high, table=found)


def _batches(vectors: Floats) -> Iterator[Floats]:
    """Vectors in batches of BATCH, the last one of another size."""
    last = max(len(vectors) - BATCH // 2, 0) // BATCH * BATCH
    for first in range(0, last, BATCH):
        yield vectors[first : first + BATCH]
    yield vectors[last:]


def _overall(found: Moments, far: float) -> Moments:
    """The same for all dimensions together, around zero unless their mean is far from it: cells' numbers, counted from zero's,
    then are in proportion to values, and databases compare them as they are.
    """
    mean = found.mean.mean()
    deviation = np.sqrt(np.mean(np.square(found.deviation) + np.square(found.mean - mean)))
    middle = 0 if abs(mean) <= far * deviation else mean
    half = max(found.high.max() - middle, middle - found.low.min())
    values = (middle - half, middle + half, middle, np.hypot(deviation, mean - middle))
    low, high, same, spread = (np.full_like(found.low, value) for value in values)
    return Moments(low, high, same, spread)


def _extremes(found: Moments, level: str, far: float) -> tuple[Doubles, Doubles]:
    """Least and greatest value, or for levels of few cells the greatest distance on both sides of the middle."""
    if CELLS[level] > FEW_CELLS:
        return found.low, found.high
    middle = _middle(found, level, far)
    half = np.maximum(middle - found.low, found.high - middle)
    return middle - half, middle + half


def _around(found: Moments, level: str, far: float, factor: float) -> tuple[Doubles, Doubles]:
    """So many times SPREADS around the middle."""
    middle = _middle(found, level, far)
    half = SPREADS[level] * factor * np.sqrt(np.square(found.deviation) + np.square(found.mean - middle))
    return middle - half, middle + half


def _middle(found: Moments, level: str, far: float) -> Doubles:
    """Where ranges have their middle: the mean, or for levels of few cells zero, unless the mean is far from it."""
    near = (CELLS[level] <= FEW_CELLS) & (np.abs(found.mean) / far <= found.deviation)
    return np.where(near, 0, found.mean)


def _bounded(plain: Codec, low: Doubles, high: Doubles) -> Codec:
    """A codec with these bounds. Where the upper end has a cell of its own, there is a cell too many to lie evenly around the
    middle: per vector, the one more is below it, so that int8 counts from -128 to 127.
    """
    if plain.per_vector and TOP[plain.level] == CELLS[plain.level]:
        cell = (high - low) / CELLS[plain.level]
        low, high = low - cell, high - cell
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
