"""Semantic textual similarity: how alike the model finds sentence pairs, against human scores."""

import numpy as np
import numpy.typing as npt

from tierexport.artifact.verdicts import StsVerdict
from tierexport.base.records import Encoded
from tierexport.datasets.sts import SentencePairs
from tierexport.metrics.similarity import COSINE, Similarity
from tierexport.verify.intervals import correlation_interval


def judge(pairs: SentencePairs, reference: Encoded, ours: Encoded, similarity: Similarity = COSINE) -> StsVerdict:
    """Spearman of an artifact's similarities and of fp32's with the scores; vectors lie pair after pair."""
    from scipy import stats

    human = np.asarray(pairs.scores, np.float64)
    expected, found = (_compared(each, similarity) for each in (reference, ours))
    before, after = (float(stats.spearmanr(human, each).statistic) for each in (expected, found))
    low, high = correlation_interval(human, expected, found)
    return StsVerdict(pairs.name, len(human), after, before, after - before, low, high)


def _compared(encoded: Encoded, similarity: Similarity) -> npt.NDArray[np.float64]:
    """The similarity of each pair, float64 (pairs,)."""
    return similarity.pairs(np.asarray(encoded.vectors[::2]), np.asarray(encoded.vectors[1::2]))
