"""Semantic textual similarity: cosines of sentence pairs against human scores."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from tierexport.metrics import cosines
from tierexport.records import Encoded
from tierexport.verdicts import StsVerdict
from tierexport.verify.intervals import correlation_interval


def judge(name: str, scores: Sequence[float], reference: Encoded, ours: Encoded) -> StsVerdict:
    """Spearman of an artifact's cosines and of fp32's with the scores; vectors lie pair after pair."""
    human = np.asarray(scores, np.float64)
    expected, found = _cosines(reference), _cosines(ours)
    before, after = (float(stats.spearmanr(human, each).statistic) for each in (expected, found))
    low, high = correlation_interval(human, expected, found)
    return StsVerdict(name, len(human), after, before, after - before, low, high)


def _cosines(encoded: Encoded) -> npt.NDArray[np.float64]:
    return cosines(np.asarray(encoded.vectors[::2]), np.asarray(encoded.vectors[1::2]))
