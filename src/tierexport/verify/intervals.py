"""95 % confidence intervals and tests: resampling over texts, queries or pairs, from a fixed seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

RESAMPLES = 10_000
SEED = 0
BATCH = 500
"""Resamples that are computed together, so that memory is bounded."""


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean, 95 % confidence interval and two-sided p value."""

    mean: float
    ci_low: float
    ci_high: float
    p_value: float


def mean_interval(values: Sequence[float] | Values) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, float64 (texts,)."""
    from scipy import stats

    sample = np.asarray(values, np.float64)
    if len(sample) < 2 or (sample == sample[0]).all():
        return float(sample[0]), float(sample[0])
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=np.random.default_rng(SEED)
    ).confidence_interval
    return float(found.low), float(found.high)


def difference(reference: Sequence[float] | Values, found: Sequence[float] | Values) -> Difference:
    """The mean of `found` - `reference` over the same queries, paired.

    The interval is a percentile bootstrap over queries, the test a sign-flip permutation (Smucker,
    Allan and Carterette 2007 recommend both for retrieval); both draw 10,000 times from a fixed seed.
    """
    from scipy import stats

    delta = np.asarray(found, np.float64) - np.asarray(reference, np.float64)
    if not delta.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    test = stats.permutation_test(
        (delta, np.zeros_like(delta)), _mean_difference, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True,
        batch=BATCH, rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return Difference(float(delta.mean()), *mean_interval(delta), float(test.pvalue))


def _mean_difference(x: Values, y: Values, axis: int) -> Values:
    """The statistic of the permutation test, vectorized over resamples."""
    mean: Values = np.mean(x, axis=axis) - np.mean(y, axis=axis)
    return mean


def correlation_interval(human: Values, reference: Values, found: Values) -> tuple[float, float]:
    """Percentile bootstrap interval over pairs of Spearman(human, found) - Spearman(human, reference)."""
    generator = np.random.default_rng(SEED)
    draws = (generator.integers(len(human), size=(BATCH, len(human))) for _ in range(RESAMPLES // BATCH))
    deltas = [_spearman(human[each], found[each]) - _spearman(human[each], reference[each]) for each in draws]
    low, high = np.nanpercentile(np.concatenate(deltas), [2.5, 97.5])
    return float(low), float(high)


def weighted_interval(texts: int, statistic: Callable[[Values], Values]) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over texts that is no mean.

    `statistic`: of the texts' shares in each draw, float64 (draws, texts), it gives a value per draw, (draws,).
    """
    generator, even = np.random.default_rng(SEED), np.full(texts, 1 / texts)
    draws = (generator.multinomial(texts, even, BATCH) / texts for _ in range(RESAMPLES // BATCH))
    low, high = np.nanpercentile(np.concatenate([statistic(each) for each in draws]), [2.5, 97.5])
    return float(low), float(high)


def _spearman(a: Values, b: Values) -> Values:
    """Spearman's rho of each row of `a` with the same row of `b`; NaN for a row of equal values."""
    from scipy import stats

    ranks = [stats.rankdata(each, axis=1) for each in (a, b)]
    x, y = (each - each.mean(1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        rho: Values = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return rho
