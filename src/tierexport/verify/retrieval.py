"""Retrieval over a BEIR set: exact search in bounded memory, trec_eval's measures, paired with fp32.

The measures are trec_eval's own code (pytrec_eval); nothing is summed here but the mean over queries.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytrec_eval

from tierexport.artifact.verdicts import RetrievalVerdict
from tierexport.base.memory import read_rows
from tierexport.base.records import Encoded, Floats, RetrievalSet
from tierexport.base.workers import HERE, Workers
from tierexport.datasets.stored_texts import StoredTexts
from tierexport.metrics.similarity import COSINE, Similarity, cosines
from tierexport.metrics.topk import TopK, blocks
from tierexport.verify.fidelity import same_tokens
from tierexport.verify.intervals import difference

DEPTH = 10
MEASURES = {"ndcg_at_10": f"ndcg_cut_{DEPTH}", "recall_at_10": f"recall_{DEPTH}", "mrr_at_10": "recip_rank"}
"""Our names and trec_eval's; reciprocal rank is cut at 10 because runs hold ten documents."""

CHUNK_ROWS = 8192

PART_ROWS = 32 * CHUNK_ROWS
"""Documents that one worker searches at a time."""


def top_documents(
    queries: Floats,
    documents: Floats,
    depth: int = DEPTH,
    similarity: Similarity = COSINE,
    order: npt.NDArray[np.int64] | None = None,
    workers: Workers = HERE,
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Row numbers and scores, float32, of the `depth` nearest documents per query, best first.

    Both are float32 (rows, dimensions); `documents` may be a memory map, which is read once, from its beginning to its end,
    and whose parts `workers` search. They are compared in blocks, so that memory is bounded by a block of queries · a chunk of
    documents. As trec_eval does, scores are rounded to float32 before they are compared; equal ones are ordered as the rows in
    `order` are, or by row number.
    """
    order = np.arange(len(documents)) if order is None else order
    places, depth = np.argsort(order), min(depth, len(documents))
    search = _Search(np.asarray(queries), documents, depth, similarity)
    parts = (_Part(rows, places[rows]) for rows in blocks(len(documents), PART_ROWS))
    best = TopK(len(queries), depth)
    for found in (workers if search.is_of_file else HERE).map(search, parts):
        best.add(slice(0, len(queries)), found.rows, found.scores)
    return order[best.rows], best.scores


@dataclass(frozen=True)
class _Part:
    """Rows of documents, and their places in the order of equal scores, int64 (rows,)."""

    rows: slice
    places: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Search:
    """The work of finding the documents of a part that are nearest to each query."""

    queries: Floats
    documents: Floats
    depth: int
    similarity: Similarity

    @property
    def is_of_file(self) -> bool:
        """Whether the documents are all that a file holds; rows chosen from a memory map are in no file."""
        file = getattr(self.documents, "filename", None)
        return file is not None and Path(file).stat().st_size == self.documents.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker, it maps the documents' file there."""
        mapped: Any = self.documents
        return _searching, (self.queries, Path(mapped.filename), mapped.shape, self.depth, self.similarity)

    def __call__(self, part: _Part) -> TopK:
        best = TopK(len(self.queries), min(self.depth, len(part.places)))
        for here in blocks(len(part.places), CHUNK_ROWS):
            chunk = read_rows(self.documents, slice(part.rows.start + here.start, part.rows.start + here.stop))
            prepared = self.similarity.prepared(chunk)
            for rows in blocks(len(self.queries)):
                found = self.similarity.compared(self.similarity.prepared(self.queries[rows]), prepared)
                best.add(rows, part.places[here], found.astype(np.float32))
        return best


def _searching(queries: Floats, file: Path, shape: tuple[int, int], depth: int, similarity: Similarity) -> _Search:
    return _Search(queries, np.memmap(file, np.float32, mode="r", shape=shape), depth, similarity)


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

    def scores(self, data: RetrievalSet, vectors: Vectors, similarity: Similarity, workers: Workers) -> "Scores":
        """What the selected vectors score on `data`, which holds the selected texts alone."""
        queries, documents = _selected(vectors.queries, self.queries), _selected(vectors.documents, self.documents)
        return score(data, queries, documents, similarity, workers)


@dataclass(frozen=True)
class Scores:
    """Each measure per query, float64 (queries,), in the order of the set's queries."""

    per_query: Mapping[str, npt.NDArray[np.float64]]

    def mean(self, measure: str) -> float:
        """The mean over queries."""
        return float(self.per_query[measure].mean())


def score(
    data: RetrievalSet, queries: Floats, documents: Floats, similarity: Similarity = COSINE, workers: Workers = HERE
) -> Scores:
    """NDCG@10, Recall@10 and MRR@10 of vectors for the set's queries and documents.

    Equal scores are ordered as trec_eval orders them over all documents: by id, descending. A query's own document is left
    out before the cut.
    """
    order = np.array(sorted(range(len(data.document_ids)), key=data.document_ids.__getitem__, reverse=True), np.int64)
    rows, similar = top_documents(queries, documents, DEPTH + bool(data.own), similarity, order, workers)
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


def judge(
    data: RetrievalSet, reference: Vectors, ours: Vectors, similarity: Similarity = COSINE, workers: Workers = HERE
) -> RetrievalVerdict:
    """An artifact's vectors against fp32's on one set; where tokens differ, also without those texts. `workers` search."""
    same_queries = same_tokens(reference.queries, ours.queries)
    same_documents = same_tokens(reference.documents, ours.documents)
    share = float(np.concatenate([same_queries, same_documents]).mean())
    every = _Selection(np.ones(len(data.queries), bool), np.ones(len(data.documents), bool), share)
    whole = _judge(data, reference, ours, every, similarity, workers)
    if share == 1 or not (rest := without(data, same_queries, same_documents)).queries:
        return whole
    same = _Selection(np.isin(data.query_ids, rest.query_ids), same_documents, 1.0)
    return replace(whole, same_tokens=_judge(rest, reference, ours, same, similarity, workers))


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
        documents=_texts_chosen(data.documents, documents),
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


def _texts_chosen(texts: Sequence[str], rows: npt.NDArray[np.bool_]) -> Sequence[str]:
    return texts.chosen(rows) if isinstance(texts, StoredTexts) else _chosen(tuple(texts), rows)


def _judge(
    data: RetrievalSet, reference: Vectors, ours: Vectors, selection: _Selection, similarity: Similarity, workers: Workers
) -> RetrievalVerdict:
    """The verdict over the selected rows, which are those of `data`."""
    expected, found = (selection.scores(data, each, similarity, workers) for each in (reference, ours))
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
