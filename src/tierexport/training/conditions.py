"""The nine ways to quantize vectors that a published table compares, on anybody's model and retrieval sets."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tierexport.artifact.verdicts import notes_on
from tierexport.base.records import Floats, RetrievalSet, VerifySettings
from tierexport.metrics.similarity import COSINE, Similarity
from tierexport.model.source import open_source
from tierexport.training.goals import Goal, Schedule
from tierexport.training.models import Training, check_widening
from tierexport.training.trainees import applied
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import Encoder, codec_similarity, open_encoder
from tierexport.vectors.scaling import fit
from tierexport.verify.intervals import mean_interval
from tierexport.verify.retrieval import Scores, score
from tierexport.verify.verifier import read_material


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
    set weighing the same), its interval, and bytes per vector.
    """

    name: str
    published: float
    scores: dict[str, float]
    average: float
    delta: float
    ci_low: float
    ci_high: float
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
class Texts:
    """A retrieval set with vectors of its queries and documents, as `similarity` compares them."""

    data: RetrievalSet
    queries: Floats
    documents: Floats
    similarity: Similarity = COSINE

    @staticmethod
    def of(encoder: Encoder, data: RetrievalSet) -> "Texts":
        """What a model makes of a set."""
        queries = encoder.compared(f"{data.name} queries", "query", data.queries)
        return Texts(data, queries, encoder.compared(data.name, "passage", data.documents), encoder.similarity)

    def through(self, head: Floats) -> "Texts":
        """The same after a head, which was trained for cosines."""
        return Texts(self.data, applied(head, self.queries), applied(head, self.documents))

    def scored(self, codec: Codec | None, quantized_queries: bool) -> Scores:
        """What it scores where documents, and perhaps queries, are stored by a codec."""
        if codec is None:
            return score(self.data, self.queries, self.documents, self.similarity)
        queries = codec.restored(self.queries) if quantized_queries else self.queries
        return score(self.data, queries, codec.restored(self.documents), self.similarity)


def evaluate(model: str, data: Sequence[str], pairs: Path, what: str, schedule: Schedule, widen: int = 1) -> Comparison:
    """All nine conditions on retrieval sets; a head, an adapter or the model is trained on pairs, which must not come from
    those sets. A head may put out `widen` times as many dimensions.
    """
    check_widening(what, widen)
    material = read_material(VerifySettings(tuple(data)), Path())
    encoder = open_encoder(model)
    sets = [Texts.of(encoder, each) for each in material.sets]
    training = Training(encoder, pairs)
    rows: list[Row] = []
    reference: list[Scores] = []
    for condition in CONDITIONS:
        texts, codec, step = _condition(condition, training, sets, what, schedule, widen)
        found = [each.scored(codec, condition.goal is not None and condition.goal.quantized_queries) for each in texts]
        reference = reference or found
        size = codec.bytes if codec else sets[0].documents[0].nbytes
        rows.append(_row(condition, found, reference, [each.data.name for each in sets], size, step))
    training.forget()
    notes = {each.name: notes_on(each.odd, len(each.own)) for each in material.sets}
    return Comparison(tuple(rows), encoder.similarity, tuple(f"{name}: {note}" for name, note in notes.items() if note))


def _condition(
    condition: Condition, training: Training, sets: Sequence[Texts], what: str, schedule: Schedule, widen: int
) -> tuple[Sequence[Texts], Codec | None, int | None]:
    """A condition's vectors, its codec, and the step that training chose."""
    goal = condition.goal
    if goal is None:
        return sets, None, None
    if not condition.trained:
        encoder = training.encoder
        vectors = encoder.compared("the pairs: passage", "passage", training.texts["passage"])
        return sets, fit(vectors, goal.level, goal.scaling, similarity=codec_similarity(encoder.similarity)), None
    goal = replace(goal, widen=widen)
    if what == "head":
        trained = training.head(goal, schedule)
        return [each.through(trained.weights["head"]) for each in sets], trained.codec, trained.step
    with tempfile.TemporaryDirectory() as scratch:
        trained = training.model(what, goal, schedule, Path(scratch) / "model")
        encoder = Encoder(open_source(str(Path(scratch) / "model")))
        return [Texts.of(encoder, each.data) for each in sets], trained.codec, trained.step


def gap(found: Sequence[Scores], reference: Sequence[Scores]) -> tuple[float, float, float]:
    """The mean of NDCG@10, `found` - `reference`, over all queries of several sets that weigh the same; its 95 % interval."""
    deltas = [ours.per_query["ndcg_at_10"] - its.per_query["ndcg_at_10"] for ours, its in zip(found, reference, strict=True)]
    total = sum(map(len, deltas))
    joined = np.concatenate([each * (total / len(deltas) / len(each)) for each in deltas])
    return float(joined.mean()), *mean_interval(joined)


def _row(
    condition: Condition, found: Sequence[Scores], reference: Sequence[Scores], names: Sequence[str], size: int,
    best_step: int | None,
) -> Row:  # fmt: skip
    scores = {name: each.mean("ndcg_at_10") for name, each in zip(names, found, strict=True)}
    average = float(np.mean(list(scores.values())))
    return Row(condition.name, condition.published, scores, average, *gap(found, reference), size, best_step)
