"""Whether retrieval with some weights rounded is significantly worse than fp32's."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tierexport.base.records import Floats, RetrievalSet, Source
from tierexport.metrics.similarity import Similarity
from tierexport.model.batches import prompt_for
from tierexport.model.encoder import encode
from tierexport.model.vector_store import VectorStore
from tierexport.verify.intervals import difference
from tierexport.verify.retrieval import score

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class RetrievalJudge:
    """A retrieval set with fp32's NDCG@10 per query, which other states of the model are compared with."""

    def __init__(self, model: "SentenceTransformer", source: Source, data: RetrievalSet) -> None:
        """`model`: in fp32."""
        self._prompts, self._data = source.prompts, data
        self._similarity = Similarity.of(source)
        self.reference = self._scores(model)

    def indistinct(self, model: "SentenceTransformer") -> bool:
        """Whether the 95 % interval of a rounded model's difference to fp32 reaches zero."""
        return difference(self.reference, self._scores(model)).ci_high >= 0

    def _scores(self, model: "SentenceTransformer") -> np.ndarray:
        vectors = (self._encode(model, "query", self._data.queries), self._encode(model, "passage", self._data.documents))
        return score(self._data, *vectors, self._similarity).per_query["ndcg_at_10"]

    def _encode(self, model: "SentenceTransformer", kind: str, texts: tuple[str, ...]) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            found = encode(model, texts, prompt_for(self._prompts, kind), VectorStore(Path(folder)))
            return np.array(found.vectors)
