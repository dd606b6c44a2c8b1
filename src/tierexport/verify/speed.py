"""How fast an artifact encodes beside fp32: in turns, on the same texts, in one run."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tierexport.datasets import spread
from tierexport.records import Encoded

TEXTS = 32
ROUNDS = 2

Encode = Callable[[Sequence[str], Path], Encoded]
"""Encodes texts, writing into an empty folder; loading the model is not counted."""


def side_by_side(texts: Sequence[str], reference: Encode, ours: Encode) -> tuple[float, float]:
    """Texts per second of `ours` and of `reference`, each the best of some rounds.

    The sides take turns, so that other load on the machine falls on both; the best round is the
    one that was disturbed least.
    """
    sample = spread(list(texts), TEXTS)
    rounds = [(_speed(ours, sample), _speed(reference, sample)) for _ in range(ROUNDS)]
    return max(each for each, _ in rounds), max(each for _, each in rounds)


def _speed(encode: Encode, texts: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return encode(texts, Path(folder)).texts_per_second
