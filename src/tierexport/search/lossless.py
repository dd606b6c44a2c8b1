"""Whether retrieval with some weights rounded is significantly worse than fp32's."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tierexport.base.records import Floats, RetrievalSet, Source
from tierexport.metrics.similarity import Similarity
from tierexport.model.batches import prompt_for
from tierexport.model.encoder import encode
from tierexport.model.vector_store import VectorStore
from tierexport.search.trial import TrialModel
from tierexport.verify.intervals import difference
from tierexport.verify.retrieval import score


class RetrievalJudge:
    """A retrieval set with fp32's NDCG@10 per query, and a model whose weights can be rounded."""

    def __init__(self, trial: TrialModel, source: Source, data: RetrievalSet) -> None:
        self._trial, self._prompts, self._data = trial, source.prompts, data
        self._similarity = Similarity.of(source)
        self.reference = self._scores()

    def indistinct(self, types: Mapping[str, str]) -> bool:
        """Whether the 95 % interval of the difference to fp32 reaches zero, with tensors at these types."""
        with self._trial.rounded(types):
            return difference(self.reference, self._scores()).ci_high >= 0

    def _scores(self) -> np.ndarray:
        vectors = (self._encode("query", self._data.queries), self._encode("passage", self._data.documents))
        return score(self._data, *vectors, self._similarity).per_query["ndcg_at_10"]

    def _encode(self, kind: str, texts: tuple[str, ...]) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            found = encode(self._trial.model, texts, prompt_for(self._prompts, kind), VectorStore(Path(folder)))
            return np.array(found.vectors)
