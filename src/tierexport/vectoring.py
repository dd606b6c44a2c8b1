"""Quantizing a model's output: fit a codec, train a head for it, encode texts, and the table that compares them."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tierexport.beir import read_retrieval_set
from tierexport.datasets import calibration_texts, read_pairs
from tierexport.encode import open_model
from tierexport.errors import VectorError
from tierexport.metrics import normalized
from tierexport.progress import stage
from tierexport.records import Floats, RetrievalSet, Source
from tierexport.source import open_source
from tierexport.vectors.codecs import Codec
from tierexport.vectors.scaling import fit, random_rotation
from tierexport.vectors.storage import read_codec, write_codec
from tierexport.vectors.training import Goal, Pairs, Schedule, Trained, applied, train
from tierexport.verify import Reference
from tierexport.verify.intervals import difference
from tierexport.verify.retrieval import Scores, score
from tierexport.workdir import cache_dir, value_digest, write_json

CODEC = "codec.safetensors"
"""The codec beside the model that was trained for it."""


@dataclass(frozen=True)
class Condition:
    """A row of the table: a level, whether a head was trained for it, whether queries are quantized, how bounds are chosen,
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
        """As `vectors eval --json` prints it."""
        return asdict(self)


class Encoder:
    """A model's fp32 vectors, from the cache where they are there."""

    def __init__(self, model: str) -> None:
        with stage("Looking at the model"):
            self.source: Source = open_source(str(Path(model).resolve()) if Path(model).is_dir() else model)
        self._reference = Reference(self.source, lambda _: None)

    def unit(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """Unit vectors float32 (texts, dimensions) of texts of a kind, "query" or "passage"."""
        with stage(f"Encoding {what}"):
            vectors = self._reference.encode(what, kind, list(texts)).vectors
        return normalized(np.asarray(vectors)).astype(np.float32)


def fit_codec(model: str, level: str, scaling: str, texts: str, count: int, per_vector: bool, rotate: bool, out: Path) -> Codec:
    """A codec for a model's vectors, its bounds from texts as a recipe's calibration names them, written to `out`."""
    encoder = Encoder(model)
    chosen = [text.text for text in calibration_texts(texts, count, Path())]
    vectors = encoder.unit("texts", "passage", chosen)
    codec = fit(vectors, level, scaling, per_vector, random_rotation(vectors.shape[1]) if rotate else None)
    write_codec(out, codec)
    return codec


def encode_texts(model: str, texts: str, codec: Path, kind: str, out: Path) -> tuple[Codec, int]:
    """Texts as codes in one safetensors file beside the codec; the codec and how many there are."""
    found, _ = read_codec(codec)
    chosen = [text.text for text in calibration_texts(texts, 2**62, Path())]
    codes = found.encode(Encoder(model).unit("texts", kind, chosen))
    write_codec(out, found, codes)
    return found, len(codes)


def train_head(model: str, pairs: Path, goal: Goal, schedule: Schedule, out: Path) -> Trained:
    """A model folder with a head trained for a level, and its codec, at `out`; a run that was killed goes on.

    Raises VectorError where `out` is something else.
    """
    if out.exists() and not (out / CODEC).is_file():
        raise VectorError(f"{out} exists and is no model that vectors train wrote, so it is not replaced: name another --out")
    encoder = Encoder(model)
    trained = _trained(encoder, _pairs(encoder, pairs), goal, schedule)
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".vectors-") as scratch:
        made = Path(scratch) / "model"
        _save_model(encoder.source, trained, made)
        write_codec(made / CODEC, trained.codec)
        write_json(
            made / "training.json", {**asdict(goal), **asdict(schedule), "best": trained.step, "scores": [*trained.scores]}
        )
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        made.rename(out)
    return trained


def _pairs(encoder: Encoder, path: Path) -> Pairs:
    queries, passages = read_pairs(path)
    numbers = {text: number for number, text in enumerate(dict.fromkeys(passages))}
    passage = np.array([numbers[text] for text in passages], np.int64)
    vectors = encoder.unit("passages of the pairs", "passage", list(numbers))
    return Pairs(encoder.unit("queries of the pairs", "query", queries), vectors[passage], passage)


def _trained(encoder: Encoder, pairs: Pairs, goal: Goal, schedule: Schedule) -> Trained:
    key = value_digest([encoder.source.digest, asdict(goal), asdict(schedule)])[:24]
    state = cache_dir() / "heads" / f"{key}.safetensors"
    with stage(f"Training for {goal.level}") as running:
        running.total(schedule.steps)
        before = [0]

        def hear(done: int, loss: float, found: float) -> None:
            running.say(f"{goal.level}: loss {loss:.3f}, NDCG@10 {found:.4f}")
            running.step(done - before[0])
            before[0] = done

        return train(pairs, goal, schedule, state, hear)


def _save_model(source: Source, trained: Trained, folder: Path) -> None:
    """The source model with the head after its pooling, as sentence-transformers saves it."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    model = open_model(source)
    dimensions = len(trained.head)
    dense = Dense(dimensions, dimensions, bias=False, activation_function=torch.nn.Identity())
    dense.linear.weight.data = torch.from_numpy(trained.head.T.copy())
    modules = [module for module in model if not isinstance(module, Normalize)]
    prompts = dict(model.prompts)
    saved = type(model)(modules=[*modules, dense, Normalize()], prompts=prompts, device="cpu", similarity_fn_name="cosine")
    saved.save_pretrained(str(folder), create_model_card=False)


# --- the table


def evaluate(model: str, data: Sequence[str], pairs: Path, schedule: Schedule) -> list[Row]:
    """All nine conditions on retrieval sets; heads are trained on pairs, which must not come from those sets."""
    encoder = Encoder(model)
    sets = [read_retrieval_set(name, Path()) for name in data]
    texts = [
        (each, encoder.unit(f"{each.name} queries", "query", each.queries), encoder.unit(each.name, "passage", each.documents))
        for each in sets
    ]
    training = _pairs(encoder, pairs)
    identity = np.eye(training.queries.shape[1], dtype=np.float32)
    rows: list[Row] = []
    reference: list[Scores] = []
    for condition in CONDITIONS:
        trained = _trained(encoder, training, condition.goal, schedule) if condition.goal and condition.trained else None
        head = trained.head if trained else identity
        codec = trained.codec if trained else _untrained(condition.goal, training)
        found = [_scored(*each, head, codec, condition.goal) for each in texts]
        reference = reference or found
        size = codec.bytes if codec else identity[0].nbytes
        rows.append(_row(condition, found, reference, [each.name for each in sets], size, trained.step if trained else None))
    return rows


def _untrained(goal: Goal | None, training: Pairs) -> Codec | None:
    return fit(training.passages, goal.level, goal.scaling) if goal else None


def _scored(
    data: RetrievalSet, queries: Floats, documents: Floats, head: Floats, codec: Codec | None, goal: Goal | None
) -> Scores:
    if codec is None or goal is None:
        return score(data, queries, documents)
    queries, documents = applied(head, queries), codec.decode(codec.encode(applied(head, documents)))
    return score(data, codec.decode(codec.encode(queries)) if goal.quantized_queries else queries, documents)


def _row(
    condition: Condition, found: Sequence[Scores], reference: Sequence[Scores], names: Sequence[str], size: int,
    best_step: int | None,
) -> Row:  # fmt: skip
    ours, theirs = ([each.per_query["ndcg_at_10"] for each in side] for side in (found, reference))
    total = sum(map(len, ours))
    weights = [total / len(ours) / len(each) for each in ours]  # so that the mean over all queries is that over sets
    joined, base = (
        np.concatenate([each * weight for each, weight in zip(side, weights, strict=True)]) for side in (ours, theirs)
    )
    paired = difference(base, joined)
    scores = {name: float(each.mean()) for name, each in zip(names, ours, strict=True)}
    average = float(np.mean(list(scores.values())))
    bounds = (paired.mean, paired.ci_low, paired.ci_high)
    return Row(condition.name, condition.published, scores, average, *bounds, size, best_step)
