"""The one search for the greatest scores: a full stable sort's order, in memory that does not grow with the queries."""

import tracemalloc

import numpy as np
import pytest

from tierexport.base.records import RetrievalSet
from tierexport.metrics.topk import TopK, blocks, greatest
from tierexport.verify.retrieval import score, top_documents


@pytest.mark.parametrize(("documents", "count", "chunk", "levels"), [(100, 10, 7, 3), (40, 10, 100, 2), (6, 10, 4, 50)])
def test_equals_a_stable_sort_of_everything(documents: int, count: int, chunk: int, levels: int) -> None:
    scores = np.random.default_rng(0).integers(0, levels, (9, documents)).astype(np.float32)
    best = TopK(9, min(count, documents))
    for first in range(0, documents, chunk):
        for rows in blocks(9, 4):
            best.add(rows, np.arange(first, documents)[:chunk], scores[rows, first : first + chunk])
    expected = np.argsort(-scores, 1, kind="stable")[:, :count]
    assert np.array_equal(best.rows, expected)
    backwards = TopK(9, min(count, documents))
    for first in reversed(range(0, documents, chunk)):
        for rows in blocks(9, 4):
            backwards.add(rows, np.arange(first, documents)[:chunk], scores[rows, first : first + chunk])
    assert np.array_equal(backwards.rows, expected)
    assert np.array_equal(best.scores, np.take_along_axis(scores, expected, 1))
    assert np.array_equal(greatest(scores, count), expected)


def test_memory_does_not_grow_with_the_number_of_queries() -> None:
    """4,000 queries with 3,000 documents: all scores at once are 96 MB in float64."""
    generator = np.random.default_rng(1)
    queries, documents = (generator.standard_normal((count, 8)).astype(np.float32) for count in (4000, 3000))
    tracemalloc.start()
    rows, _ = top_documents(queries, documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.shape == (4000, 10)
    assert peak < 40e6


def test_a_set_of_many_queries_is_judged_in_bounded_memory() -> None:
    """20,000 queries with 2,000 documents, by all measures: all scores at once are 160 MB, and 320 MB in float64."""
    generator = np.random.default_rng(2)
    documents = generator.standard_normal((2000, 16)).astype(np.float32)
    rows = generator.integers(0, len(documents), 20_000)
    queries = documents[rows] + generator.standard_normal((len(rows), 16)).astype(np.float32)
    names = tuple(f"q{row}" for row in range(len(rows)))
    data = RetrievalSet(
        name="many",
        document_ids=tuple(f"d{row}" for row in range(len(documents))),
        documents=("a text",) * len(documents),
        query_ids=names,
        queries=("a question",) * len(names),
        qrels={name: {f"d{row}": 1} for name, row in zip(names, rows, strict=True)},
    )
    tracemalloc.start()
    found = score(data, queries, documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.per_query["ndcg_at_10"].shape == (20_000,)
    assert 0.1 < found.mean("mrr_at_10") < found.mean("recall_at_10") < 0.9
    assert peak < 100e6
