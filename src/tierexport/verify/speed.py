"""How fast an artifact encodes beside fp32: in turns on the same texts, until the ratio's interval is narrow enough."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tierexport.base.records import Encoded
from tierexport.datasets.calibration import spread
from tierexport.verify.intervals import Values

TEXTS = 32
FEWEST_ROUNDS = 4
"""Rounds that a ratio takes at least, after one that warms both sides up."""

WITHIN = 0.1
"""How far the ends of the ratio's interval may lie from it, as a share of it."""

SECONDS = 60.0
"""How long the turns may take."""

Encode = Callable[[Sequence[str], Path], Encoded]
"""Encodes texts, writing into an empty folder; loading the model is not counted."""


@dataclass(frozen=True)
class Speed:
    """Texts per second of an artifact and of fp32 (geometric means over `rounds`), and the 95 % interval of their ratio;
    or, in `reason`, why none are stated.
    """

    ours: float | None = None
    reference: float | None = None
    ratio_ci: tuple[float, float] | None = None
    rounds: int = 0
    reason: str | None = None


def side_by_side(
    texts: Sequence[str], reference: Encode, ours: Encode, clock: Callable[[], float] = time.perf_counter
) -> Speed:
    """The speeds of `ours` and of `reference`, which take turns, so that other load on the machine falls on both.

    They go on until the interval of the ratio is within WITHIN of it, and end without figures before SECONDS have passed,
    as soon as the rounds that are left could not average out the spread seen so far.
    """
    sample = spread(texts, TEXTS)
    began = clock()
    _turn(ours, reference, sample)
    warm = clock()
    rounds: list[tuple[float, float]] = []
    more = 0.0
    while warm - began + (clock() - warm) * (1 + more / max(len(rounds), 1)) < SECONDS:
        rounds.append(_turn(ours, reference, sample))
        logs = np.log(rounds)
        ratios = logs[:, 0] - logs[:, 1]
        if len(rounds) >= FEWEST_ROUNDS and _is_known(ratios):
            mean = np.exp(logs.mean(0))
            return Speed(float(mean[0]), float(mean[1]), ratio_interval(ratios), len(rounds))
        more = max(_missing(ratios), 1) if len(rounds) >= FEWEST_ROUNDS else FEWEST_ROUNDS - len(rounds)
    return Speed(rounds=len(rounds), reason=_why_none(rounds))


def _is_known(logs: Values) -> bool:
    """Whether the interval of a ratio is within WITHIN of it."""
    low, high = (end / math.exp(float(logs.mean())) for end in ratio_interval(logs))
    return low >= 1 - WITHIN and high <= 1 + WITHIN


def ratio_interval(logs: Values) -> tuple[float, float]:
    """Student's 95 % interval of a ratio from its logarithms, float64 (rounds,), of which there have to be two."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    return math.exp(mean - half), math.exp(mean + half)


def _why_none(rounds: Sequence[tuple[float, float]]) -> str:
    """What is said in place of figures."""
    if len(rounds) < FEWEST_ROUNDS:
        return f"{SECONDS:.0f} s are not enough for the {FEWEST_ROUNDS} rounds in turns that a ratio takes"
    logs = np.log(rounds)
    low, high = ratio_interval(logs[:, 0] - logs[:, 1])
    ratio = math.exp(float((logs[:, 0] - logs[:, 1]).mean()))
    ends = f"{low / ratio - 1:+.0%} to {high / ratio - 1:+.0%}"
    return f"the machine was not quiet: after {len(rounds)} rounds in turns the ratio's 95 % interval is {ends} around it"


def _missing(logs: Values) -> float:
    """How many more rounds of this spread an interval within WITHIN takes, at least."""
    return (1.96 * float(logs.std(ddof=1)) / -math.log(1 - WITHIN)) ** 2 - len(logs)


def _turn(ours: Encode, reference: Encode, texts: Sequence[str]) -> tuple[float, float]:
    """Texts per second of an artifact and of fp32, one after the other."""
    return _speed(ours, texts), _speed(reference, texts)


def _speed(encode: Encode, texts: Sequence[str]) -> float:
    """Texts per second of one pass."""
    with tempfile.TemporaryDirectory() as folder:
        return encode(texts, Path(folder)).texts_per_second
