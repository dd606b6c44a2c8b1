"""Compares the nine ways to quantize vectors that a published table has, on any model and retrieval sets."""

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tierexport.artifact.verdicts import notes_on
from tierexport.base.records import Floats
from tierexport.metrics.similarity import Similarity
from tierexport.model.source import open_source
from tierexport.recipe.schema import VerifySettings
from tierexport.training.goals import Goal, Schedule
from tierexport.training.models import Training, check_widening
from tierexport.training.trainees import applied
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import Encoder, codec_similarity, open_encoder
from tierexport.vectors.scaling import fit
from tierexport.verify.material import read_material
from tierexport.verify.retrieval import Scores
from tierexport.verify.stored import Texts, gap, mean_recall


@dataclass(frozen=True)
class Condition:
    """A row of the table: a level, whether anything was trained for it, whether queries are quantized, how bounds are chosen,
    and the score published for jina-embeddings-v4 on NanoBEIR.
    """

    name: str
    published: float
    goal: Goal | None = None
    trained: bool = False


CONDITIONS = (
    Condition("fp32", 60.10),
    Condition("binary, untrained", 58.33, Goal("binary")),
    Condition("binary documents, untrained", 59.08, Goal("binary", quantized_queries=False)),
    Condition("binary", 59.22, Goal("binary"), trained=True),
    Condition("binary documents", 60.81, Goal("binary", quantized_queries=False), trained=True),
    Condition("trinary", 59.49, Goal("trinary"), trained=True),
    Condition("int4", 61.73, Goal("int4"), trained=True),
    Condition("int8, rolling", 61.67, Goal("int8"), trained=True),
    Condition("int8, minmax", 61.29, Goal("int8", scaling="minmax"), trained=True),
)
"""The nine of jina.ai's "Quantization-Aware Training of jina-embeddings-v4", whose scores are quoted."""


@dataclass(frozen=True)
class Row:
    """A condition with what it scored: NDCG@10 by set and on average, the paired difference of all queries to fp32 (each
    set weighing the same), its interval, the share of the ten documents nearest by the same vectors unquantized that codes
    find, without and with rescoring, and bytes per vector.
    """

    name: str
    published: float
    scores: dict[str, float]
    average: float
    delta: float
    ci_low: float
    ci_high: float
    recall: float
    rescored: float
    bytes: int
    best_step: int | None

    def as_json(self) -> dict[str, Any]:
        """Its part of `vectors eval --json`."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """All conditions, by what the model's own vectors were compared, and what was unusual in a set, a line each."""

    rows: tuple[Row, ...]
    similarity: Similarity
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As `vectors eval --json` prints it."""
        return {"similarity": self.similarity.name, "notes": [*self.notes], "rows": [row.as_json() for row in self.rows]}


@dataclass(frozen=True)
class _Stored:
    """A condition's vectors by set, the codec they are stored by (None: unquantized), and the step that training chose."""

    sets: Sequence[Texts]
    codec: Codec | None = None
    step: int | None = None


def evaluate(model: str, data: Sequence[str], pairs: Path, what: str, schedule: Schedule, widen: int = 1) -> Comparison:
    """All nine conditions on retrieval sets; a head, an adapter or the model is trained on pairs, which must not come from
    those sets. `widen`: the expansion factor of a head.
    """
    check_widening(what, widen)
    material = read_material(VerifySettings(tuple(data)))
    encoder = open_encoder(model)
    work = _Evaluation(Training(encoder, pairs), [Texts.of(encoder, each) for each in material.sets], what, schedule, widen)
    rows = [work.row(condition) for condition in CONDITIONS]
    work.training.forget()
    notes = {each.name: notes_on(each.odd, len(each.own)) for each in material.sets}
    return Comparison(tuple(rows), encoder.similarity, tuple(f"{name}: {note}" for name, note in notes.items() if note))


@dataclass(frozen=True)
class _Evaluation:
    """What all conditions share: the model with its pairs, the sets, what is trained and how."""

    training: Training
    sets: Sequence[Texts]
    what: str
    schedule: Schedule
    widen: int

    def row(self, condition: Condition) -> Row:
        """A condition's row of the table."""
        stored = self._stored(condition)
        found, recall = self._reference, (1.0, 1.0)
        if (codec := stored.codec) is not None and condition.goal is not None:
            quantized = condition.goal.quantized_queries
            found = [each.scored(codec, quantized) for each in stored.sets]
            recall = mean_recall([each.recall(codec, quantized) for each in stored.sets])
        scores = {each.data.name: one.mean("ndcg_at_10") for each, one in zip(self.sets, found, strict=True)}
        average = float(np.mean(list(scores.values())))
        size = stored.codec.bytes if stored.codec else self.sets[0].documents[0].nbytes
        return Row(
            condition.name, condition.published, scores, average, *gap(found, self._reference), *recall, size, stored.step
        )

    @functools.cached_property
    def _reference(self) -> list[Scores]:
        """What the model's own vectors score on each set."""
        return [each.scored(None, False) for each in self.sets]

    def _stored(self, condition: Condition) -> _Stored:
        """A condition's vectors and codec: none, one fitted on the pairs' passages, or one that was trained for."""
        if condition.goal is None:
            return _Stored(self.sets)
        if condition.trained:
            return self._trained(replace(condition.goal, widen=self.widen))
        encoder = self.training.encoder
        vectors = encoder.compared("the pairs: passage", "passage", self.training.texts["passage"])
        similarity = codec_similarity(encoder.similarity)
        return _Stored(self.sets, fit(vectors, condition.goal.level, condition.goal.scaling, similarity=similarity))

    def _trained(self, goal: Goal) -> _Stored:
        """The vectors of the head, adapter or model that is trained for a goal."""
        if self.what == "head":
            trained = self.training.head(goal, self.schedule)
            return _Stored([_through(trained.weights["head"], each) for each in self.sets], trained.codec, trained.step)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            trained = self.training.model(self.what, goal, self.schedule, folder)
            encoder = Encoder(open_source(str(folder)))
            return _Stored([Texts.of(encoder, each.data) for each in self.sets], trained.codec, trained.step)


def _through(head: Floats, texts: Texts) -> Texts:
    """A set's vectors after a head, which was trained for cosines."""
    return Texts(texts.data, applied(head, texts.queries), applied(head, texts.documents))
