"""What retrieval loses with some weights rounded, with its interval."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tierexport.base.records import Floats, RetrievalSet, Source
from tierexport.metrics.similarity import Similarity
from tierexport.model.batches import prompt_for
from tierexport.model.encoder import encode
from tierexport.model.vector_store import VectorStore
from tierexport.verify.intervals import Difference, difference
from tierexport.verify.retrieval import score

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class RetrievalJudge:
    """Retrieval sets with fp32's NDCG@10 per query, which other states of the model are compared with, all queries together."""

    def __init__(self, model: "SentenceTransformer", source: Source, sets: Sequence[RetrievalSet]) -> None:
        """`model`: in fp32."""
        self._prompts, self._sets = source.prompts, sets
        self._similarity = Similarity.of(source)
        self.reference = self._scores(model)

    def difference(self, model: "SentenceTransformer") -> Difference:
        """NDCG@10 of a rounded model less fp32's."""
        return difference(self.reference, self._scores(model))

    def queries_for(self, loss: float, found: Difference) -> int | None:
        """How many such queries it would take for a difference's interval to exclude a loss, by the width that it has now; None
        where the difference itself is as large.
        """
        if found.mean <= -loss:
            return None
        return math.ceil(len(self.reference) * ((found.mean - found.ci_low) / (found.mean + loss)) ** 2)

    def _scores(self, model: "SentenceTransformer") -> np.ndarray:
        return np.concatenate([self._scores_on(each, model) for each in self._sets])

    def _scores_on(self, data: RetrievalSet, model: "SentenceTransformer") -> np.ndarray:
        vectors = (self._encode(model, "query", data.queries), self._encode(model, "passage", data.documents))
        return score(data, *vectors, self._similarity).per_query["ndcg_at_10"]

    def _encode(self, model: "SentenceTransformer", kind: str, texts: Sequence[str]) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            found = encode(model, texts, prompt_for(self._prompts, kind), VectorStore(Path(folder)))
            return np.array(found.vectors)
