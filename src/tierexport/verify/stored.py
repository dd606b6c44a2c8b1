"""What a retrieval set's vectors are worth as a codec stores them: scores, and the neighbours that are still found."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats, RetrievalSet, Text
from tierexport.metrics.similarity import COSINE, Similarity
from tierexport.metrics.topk import Indices
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import Encoder
from tierexport.vectors.index import Index
from tierexport.verify.intervals import mean_interval
from tierexport.verify.retrieval import DEPTH, Scores, score, top_documents, without

RESCORED = 4
"""So many times as many documents are found by codes where they are rescored by the vectors themselves."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recall:
    """The share of the ten documents nearest by the vectors themselves, found exactly, that codes find: float64 (queries,).

    `plain`: among the first ten. `rescored`: among RESCORED times as many, for rescoring these by the vectors themselves puts
    first whichever of the ten are there.
    """

    plain: npt.NDArray[np.float64]
    rescored: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """A retrieval set with vectors of its queries and documents, as `similarity` compares them."""

    data: RetrievalSet
    queries: Floats
    documents: Floats
    similarity: Similarity = COSINE

    @staticmethod
    def of(encoder: Encoder, data: RetrievalSet) -> "Texts":
        """A set with a model's vectors."""
        queries = encoder.compared(f"{data.name} queries", "query", data.queries)
        return Texts(data, queries, encoder.compared(data.name, "passage", data.documents), encoder.similarity)

    @staticmethod
    def ranked(encoder: Encoder, name: str, texts: Sequence[Text]) -> "Texts":
        """Texts that nobody judged with a model's vectors: what is relevant to each query are the ten passages nearest by fp32.

        Where there are no queries among them, each passage asks for the others. Raises VectorError where there are no passages.
        """
        passages, asked = (tuple(each.text for each in texts if each.kind == kind) for kind in ("passage", "query"))
        if len(passages) < 2:
            raise VectorError(f"{name} holds {len(passages)} passages, and ranking takes two at least")
        ids = tuple(f"passage {row}" for row in range(len(passages)))
        query_ids = tuple(f"query {row}" for row in range(len(asked))) or ids
        documents = encoder.compared(name, "passage", passages)
        queries = encoder.compared(f"{name} queries", "query", asked) if asked else documents
        data = RetrievalSet(name, ids, passages, query_ids, asked or passages, {}, () if asked else ids)
        found = Texts(data, queries, documents, encoder.similarity)
        qrels = {query: {ids[row]: 1 for row in rows} for query, rows in zip(query_ids, found.nearest, strict=True)}
        return replace(found, data=replace(data, qrels=qrels))

    def part(self, queries: Mask, documents: Mask) -> "Texts":
        """The selected texts alone; a query that loses all its relevant documents goes too."""
        data = replace(without(self.data, queries, documents), name=self.data.name)
        return replace(
            self,
            data=data,
            queries=self.queries[np.isin(self.data.query_ids, data.query_ids)],
            documents=self.documents[documents],
        )

    def scored(self, codec: Codec | None, quantized_queries: bool) -> Scores:
        """Its scores where documents, and perhaps queries, are stored by a codec; None: unquantized."""
        if codec is None:
            return score(self.data, self.queries, self.documents, self.similarity)
        queries = codec.restored(self.queries) if quantized_queries else self.queries
        return score(self.data, queries, codec.restored(self.documents), self.similarity)

    def recall(self, codec: Codec, quantized_queries: bool) -> Recall:
        """How many of the nearest documents are found where documents, and perhaps queries, are stored by a codec."""
        index = Index(codec, codec.coded(self.documents))
        found = self._others(index.search(self.queries, RESCORED * DEPTH + 1, quantized_queries)[1])
        shares = [_shared(self.nearest, found[:, :count]) for count in (DEPTH, RESCORED * DEPTH)]
        return Recall(*shares)

    @functools.cached_property
    def nearest(self) -> Indices:
        """Rows of the ten documents nearest to each query by the vectors themselves, int64 (queries, ten)."""
        rows, _ = top_documents(self.queries, self.documents, DEPTH + 1, self.similarity)
        return self._others(rows)[:, :DEPTH]

    def _others(self, rows: Indices) -> Indices:
        """Rows of documents, (queries, count), without each query's own one; without the last, where that is not among them."""
        if not self.data.own:
            return rows
        places = {name: row for row, name in enumerate(self.data.document_ids)}
        own = set(self.data.own)
        mine = np.array([places[name] if name in own else -1 for name in self.data.query_ids])
        last = np.argsort(rows == mine[:, None], 1, kind="stable")
        return np.take_along_axis(rows, last, 1)[:, :-1]


def gap(found: Sequence[Scores], reference: Sequence[Scores]) -> tuple[float, float, float]:
    """The mean of NDCG@10, `found` - `reference`, over all queries of several sets that weigh the same; its 95 % interval."""
    deltas = [ours.per_query["ndcg_at_10"] - its.per_query["ndcg_at_10"] for ours, its in zip(found, reference, strict=True)]
    total = sum(map(len, deltas))
    joined = np.concatenate([each * (total / len(deltas) / len(each)) for each in deltas])
    return float(joined.mean()), *mean_interval(joined)


def mean_recall(found: Sequence[Recall]) -> tuple[float, float]:
    """The means of `plain` and `rescored` over several sets that weigh the same."""
    return float(np.mean([each.plain.mean() for each in found])), float(np.mean([each.rescored.mean() for each in found]))


def _shared(expected: Indices, found: Indices) -> npt.NDArray[np.float64]:
    """The share of each row of `expected` that is in the same row of `found`."""
    shares: npt.NDArray[np.float64] = (expected[:, :, None] == found[:, None, :]).any(2).mean(1)
    return shares
