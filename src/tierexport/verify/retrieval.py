"""Retrieval over a BEIR set: exact search in bounded memory, trec_eval's measures, paired statistics.

The measures are trec_eval's own code (pytrec_eval); nothing is summed here but the mean over queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytrec_eval
from scipy import stats

from tierexport.metrics import normalized
from tierexport.records import Floats, RetrievalSet

DEPTH = 10
MEASURES = {"ndcg_at_10": f"ndcg_cut_{DEPTH}", "recall_at_10": f"recall_{DEPTH}", "mrr_at_10": "recip_rank"}
"""Our names and trec_eval's; reciprocal rank is cut at 10 because runs hold ten documents."""

CHUNK_ROWS = 8192
RESAMPLES = 10_000
SEED = 0


def top_documents(
    queries: Floats, documents: Floats, depth: int = DEPTH
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Row numbers and cosines of the `depth` nearest documents per query, best first.

    Both are float32 (rows, dimensions); `documents` may be a memory map. Documents are read in
    chunks, so that memory is bounded by chunk · queries, not by documents · queries. Equal scores
    are ordered by row number.
    """
    unit = normalized(queries)
    rows = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float64)
    for start in range(0, len(documents), CHUNK_ROWS):
        chunk = normalized(np.asarray(documents[start : start + CHUNK_ROWS]))
        found = unit @ chunk.T
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + len(chunk)), found.shape)], axis=1)
        scores = np.concatenate([scores, found], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        rows, scores = np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1)
    return rows, scores


@dataclass(frozen=True)
class Scores:
    """Each measure per query, float64 (queries,), in the order of the set's queries."""

    per_query: Mapping[str, npt.NDArray[np.float64]]

    def mean(self, measure: str) -> float:
        """The mean over queries."""
        return float(self.per_query[measure].mean())


def score(data: RetrievalSet, queries: Floats, documents: Floats) -> Scores:
    """NDCG@10, Recall@10 and MRR@10 of vectors for the set's queries and documents."""
    rows, cosines = top_documents(queries, documents)
    run = {
        query: {data.document_ids[row]: float(value) for row, value in zip(found, values, strict=True)}
        for query, found, values in zip(data.query_ids, rows, cosines, strict=True)
    }
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(grades) for query, grades in data.qrels.items()}, {f"ndcg_cut.{DEPTH}", f"recall.{DEPTH}", "recip_rank"}
    )
    judged = evaluator.evaluate(run)
    return Scores({ours: np.array([judged[query][theirs] for query in data.query_ids]) for ours, theirs in MEASURES.items()})


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean, 95 % confidence interval and two-sided p value."""

    mean: float
    ci_low: float
    ci_high: float
    p_value: float


def difference(
    reference: Sequence[float] | npt.NDArray[np.float64], found: Sequence[float] | npt.NDArray[np.float64]
) -> Difference:
    """The mean of `found` less `reference` over the same queries.

    The interval is a percentile bootstrap over queries, the test a sign-flip permutation (Smucker,
    Allan and Carterette 2007 recommend both for retrieval); both draw 10,000 times from a fixed seed.
    """
    delta = np.asarray(found, np.float64) - np.asarray(reference, np.float64)
    if not delta.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    options = {"n_resamples": RESAMPLES, "vectorized": True, "batch": 500}
    interval = stats.bootstrap(
        (delta,), np.mean, confidence_level=0.95, method="percentile", rng=np.random.default_rng(SEED), **options
    ).confidence_interval
    test = stats.permutation_test(
        (delta, np.zeros_like(delta)), _mean_difference, permutation_type="samples", rng=np.random.default_rng(SEED), **options
    )
    return Difference(float(delta.mean()), float(interval.low), float(interval.high), float(test.pvalue))


def _mean_difference(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = np.mean(x, axis=axis) - np.mean(y, axis=axis)
    return mean
