"""Retrieval over a BEIR set: exact search in bounded memory, trec_eval's measures, paired with fp32.

The measures are trec_eval's own code (pytrec_eval); nothing is summed here but the mean over queries.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytrec_eval

from tierexport.artifact.verdicts import RetrievalVerdict
from tierexport.base.memory import read_rows
from tierexport.base.records import Encoded, Floats, RetrievalSet
from tierexport.metrics.similarity import COSINE, Similarity, cosines
from tierexport.metrics.topk import TopK, blocks
from tierexport.verify.fidelity import same_tokens
from tierexport.verify.intervals import difference

DEPTH = 10
MEASURES = {"ndcg_at_10": f"ndcg_cut_{DEPTH}", "recall_at_10": f"recall_{DEPTH}", "mrr_at_10": "recip_rank"}
"""Our names and trec_eval's; reciprocal rank is cut at 10 because runs hold ten documents."""

CHUNK_ROWS = 8192


def top_documents(
    queries: Floats,
    documents: Floats,
    depth: int = DEPTH,
    similarity: Similarity = COSINE,
    order: npt.NDArray[np.int64] | None = None,
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Row numbers and scores, float32, of the `depth` nearest documents per query, best first.

    Both are float32 (rows, dimensions); `documents` may be a memory map, which is read once, from its beginning to its end.
    They are compared in blocks, so that memory is bounded by a block of queries · a chunk of documents. As trec_eval does,
    scores are rounded to float32 before they are compared; equal ones are ordered as the rows in `order` are, or by row number.
    """
    order = np.arange(len(documents)) if order is None else order
    best = TopK(len(queries), min(depth, len(documents)))
    places = np.argsort(order)
    for here in blocks(len(documents), CHUNK_ROWS):
        chunk = similarity.prepared(read_rows(documents, here))
        for rows in blocks(len(queries)):
            found = similarity.compared(similarity.prepared(np.asarray(queries[rows])), chunk)
            best.add(rows, places[here], found.astype(np.float32))
    return order[best.rows], best.scores


@dataclass(frozen=True)
class Vectors:
    """What one encoder made of a set's queries and documents."""

    queries: Encoded
    documents: Encoded


@dataclass(frozen=True)
class _Selection:
    """Which queries and documents of a set's vectors are scored, bool (texts,), and the share of texts with equal tokens."""

    queries: npt.NDArray[np.bool_]
    documents: npt.NDArray[np.bool_]
    tokens_equal: float

    def scores(self, data: RetrievalSet, vectors: Vectors, similarity: Similarity) -> "Scores":
        """What the selected vectors score on `data`, which holds the selected texts alone."""
        queries, documents = _selected(vectors.queries, self.queries), _selected(vectors.documents, self.documents)
        return score(data, queries, documents, similarity)


@dataclass(frozen=True)
class Scores:
    """Each measure per query, float64 (queries,), in the order of the set's queries."""

    per_query: Mapping[str, npt.NDArray[np.float64]]

    def mean(self, measure: str) -> float:
        """The mean over queries."""
        return float(self.per_query[measure].mean())


def score(data: RetrievalSet, queries: Floats, documents: Floats, similarity: Similarity = COSINE) -> Scores:
    """NDCG@10, Recall@10 and MRR@10 of vectors for the set's queries and documents.

    Equal scores are ordered as trec_eval orders them over all documents: by id, descending. A query's own document is left
    out before the cut.
    """
    order = np.array(sorted(range(len(data.document_ids)), key=data.document_ids.__getitem__, reverse=True), np.int64)
    rows, similar = top_documents(queries, documents, DEPTH + bool(data.own), similarity, order)
    own = set(data.own)
    run = {}
    for query, found, values in zip(data.query_ids, rows, similar, strict=True):
        named = ((data.document_ids[row], float(value)) for row, value in zip(found, values, strict=True))
        others = [each for each in named if each[0] != query or query not in own]
        run[query] = dict(others[:DEPTH])
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(grades) for query, grades in data.qrels.items()}, {f"ndcg_cut.{DEPTH}", f"recall.{DEPTH}", "recip_rank"}
    )
    judged = evaluator.evaluate(run)
    none = dict.fromkeys(MEASURES.values(), 0.0)  # of a query without any result
    return Scores(
        {ours: np.array([judged.get(query, none)[theirs] for query in data.query_ids]) for ours, theirs in MEASURES.items()}
    )


def judge(data: RetrievalSet, reference: Vectors, ours: Vectors, similarity: Similarity = COSINE) -> RetrievalVerdict:
    """An artifact's vectors against fp32's on one set; where tokens differ, also without those texts."""
    same_queries = same_tokens(reference.queries, ours.queries)
    same_documents = same_tokens(reference.documents, ours.documents)
    share = float(np.concatenate([same_queries, same_documents]).mean())
    every = _Selection(np.ones(len(data.queries), bool), np.ones(len(data.documents), bool), share)
    whole = _judge(data, reference, ours, every, similarity)
    if share == 1 or not (rest := without(data, same_queries, same_documents)).queries:
        return whole
    same = _Selection(np.isin(data.query_ids, rest.query_ids), same_documents, 1.0)
    return replace(whole, same_tokens=_judge(rest, reference, ours, same, similarity))


def without(data: RetrievalSet, queries: npt.NDArray[np.bool_], documents: npt.NDArray[np.bool_]) -> RetrievalSet:
    """The set with the selected texts alone; a query that loses all its relevant documents goes too.

    Judged documents that the corpus never had stay judged, as in the whole set.
    """
    document_ids = _chosen(data.document_ids, documents)
    left = set(document_ids)
    qrels = _grades_left(data, _chosen(data.query_ids, queries), left)
    texts = dict(zip(data.query_ids, data.queries, strict=True))
    return RetrievalSet(
        name=f"{data.name}, same tokens only",
        document_ids=document_ids,
        documents=_chosen(data.documents, documents),
        query_ids=tuple(qrels),
        queries=tuple(texts[query] for query in qrels),
        qrels=qrels,
        own=tuple(query for query in data.own if query in qrels and query in left),
    )


def _grades_left(data: RetrievalSet, queries: Iterable[str], left: Collection[str]) -> dict[str, dict[str, int]]:
    """The grades of queries without the documents that are gone; queries that lost all relevant documents are left out."""
    gone = set(data.document_ids).difference(left)
    found = {query: {name: grade for name, grade in data.qrels[query].items() if name not in gone} for query in queries}
    return {
        query: grades
        for query, grades in found.items()
        if len(grades) == len(data.qrels[query]) or any(grade > 0 and name in left for name, grade in grades.items())
    }


def _chosen(items: tuple[str, ...], rows: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(item for item, stays in zip(items, rows, strict=True) if stays)


def _judge(
    data: RetrievalSet, reference: Vectors, ours: Vectors, selection: _Selection, similarity: Similarity
) -> RetrievalVerdict:
    """The verdict over the selected rows, which are those of `data`."""
    expected, found = (selection.scores(data, each, similarity) for each in (reference, ours))
    tested = difference(expected.per_query["ndcg_at_10"], found.per_query["ndcg_at_10"])
    near = np.concatenate(list(_cosines(reference.documents, ours.documents)))
    return RetrievalVerdict(
        dataset=data.name,
        queries=len(data.queries),
        documents=len(data.documents),
        ndcg_at_10=found.mean("ndcg_at_10"),
        recall_at_10=found.mean("recall_at_10"),
        mrr_at_10=found.mean("mrr_at_10"),
        reference_ndcg_at_10=expected.mean("ndcg_at_10"),
        reference_recall_at_10=expected.mean("recall_at_10"),
        reference_mrr_at_10=expected.mean("mrr_at_10"),
        delta=tested.mean,
        ci_low=tested.ci_low,
        ci_high=tested.ci_high,
        p_value=tested.p_value,
        tokens_equal=selection.tokens_equal,
        cos_mean=float(near[selection.documents].mean()),
        own_documents=len(data.own),
        odd=data.odd,
        deltas=tuple(float(each) for each in found.per_query["ndcg_at_10"] - expected.per_query["ndcg_at_10"]),
    )


def _selected(encoded: Encoded, rows: npt.NDArray[np.bool_]) -> Floats:
    """The vectors of the selected texts; the memory map itself where that is all of them."""
    return encoded.vectors if rows.all() else encoded.vectors[rows]


def _cosines(reference: Encoded, ours: Encoded) -> Iterator[npt.NDArray[np.float64]]:
    """Cosines of the vectors to the reference's, float64 (rows of a chunk,), chunk after chunk."""
    for chunk in blocks(len(reference.vectors), CHUNK_ROWS):
        yield cosines(read_rows(reference.vectors, chunk), read_rows(ours.vectors, chunk))
