"""How fast an artifact encodes beside fp32: in turns, on the same texts, until the ratio is known well enough to be stated."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from tierexport.datasets import spread
from tierexport.records import Encoded
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

    They go on until the interval of the ratio is within WITHIN of it, and end without figures when SECONDS have passed, or
    when so few are left that the spread seen so far could not be averaged out in them.
    """
    sample = spread(list(texts), TEXTS)
    began = clock()
    _turn(ours, reference, sample)
    rounds: list[tuple[float, float]] = []
    while True:
        rounds.append(_turn(ours, reference, sample))
        if len(rounds) < FEWEST_ROUNDS and clock() - began < SECONDS:
            continue
        logs = np.log(rounds)
        low, high = ratio_interval(logs[:, 0] - logs[:, 1])
        ratio = float(np.exp((logs[:, 0] - logs[:, 1]).mean()))
        if len(rounds) >= FEWEST_ROUNDS and high <= ratio * (1 + WITHIN) and low >= ratio * (1 - WITHIN):
            mean = np.exp(logs.mean(0))
            return Speed(float(mean[0]), float(mean[1]), (low, high), len(rounds))
        passed = clock() - began
        if passed + passed / (len(rounds) + 1) * max(_missing(logs[:, 0] - logs[:, 1]), 1) > SECONDS:
            return Speed(rounds=len(rounds), reason=_why_none(len(rounds), low / ratio, high / ratio))


def ratio_interval(logs: Values) -> tuple[float, float]:
    """Student's 95 % interval of a ratio from its logarithms, float64 (rounds,)."""
    if len(logs) < 2:
        return 0.0, math.inf
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    return math.exp(mean - half), math.exp(mean + half)


def _why_none(rounds: int, low: float, high: float) -> str:
    """What is said in place of figures; the interval's ends as multiples of the ratio."""
    if rounds < FEWEST_ROUNDS:
        return f"one round takes so long that {SECONDS:.0f} s are enough for {rounds}, and a ratio takes {FEWEST_ROUNDS}"
    return (
        f"after {rounds} rounds in turns the ratio has a 95 % interval of {low - 1:+.0%} to {high - 1:+.0%}: no quiet machine"
    )


def _missing(logs: Values) -> float:
    """How many more rounds of this spread an interval within WITHIN takes, at least."""
    deviation = float(logs.std(ddof=1)) if len(logs) > 1 else math.inf
    return (1.96 * deviation / -math.log(1 - WITHIN)) ** 2 - len(logs)


def _turn(ours: Encode, reference: Encode, texts: Sequence[str]) -> tuple[float, float]:
    return _speed(ours, texts), _speed(reference, texts)


def _speed(encode: Encode, texts: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return encode(texts, Path(folder)).texts_per_second
