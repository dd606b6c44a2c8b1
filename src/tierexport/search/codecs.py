"""The codec that suits a model within so many bytes: levels, dimensions, scalings, rotation and width, tried on sets of texts.

Codecs are chosen by half of the queries and judged by the other half, so that what is reported is not what was chosen by. The
model's vectors are read once; nothing is encoded for a trial.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError
from tierexport.base.progress import stage
from tierexport.base.records import Floats
from tierexport.base.workers import HERE, Workers, on_cores
from tierexport.datasets.calibration import every_text
from tierexport.recipe.choices import LEVELS, SCALINGS, WIDEST
from tierexport.recipe.schema import VectorSettings, VerifySettings
from tierexport.search.found import CodecPoint, FoundCodec
from tierexport.vectors.codecs import Codec
from tierexport.vectors.commands import check_free
from tierexport.vectors.encoder import codec_similarity, fitted, open_encoder
from tierexport.vectors.packing import fitting
from tierexport.vectors.scaling import takes
from tierexport.vectors.storage import write_codec
from tierexport.verify.material import read_material
from tierexport.verify.stored import Texts, gap, mean_recall

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Shares of the budget at which the frontier has a point."""

FITTED_ON = 1_000
"""Documents that bounds are fitted on, of all sets together."""

CHOOSING_QUERIES = 250
"""Queries of a set that codecs are chosen by, at most: half of what it has, where that is less."""

CHOOSING_DOCUMENTS = 5_000
"""Documents of a set among which these are searched, at most, beside those that are judged for them."""

JUDGING_QUERIES = 1_000
"""Queries of a set that points are judged by, at most, among all documents."""

FINALISTS = 6
"""Codecs within the budget, those that follow fp32's ranking best, of which judgements choose one."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Trial:
    """A codec, its settings, and its recall of fp32's neighbours on the queries that codecs are chosen by."""

    settings: VectorSettings
    codec: Codec
    recall: float


def search_codec(
    model: str, budget: int, data: Sequence[str], texts: str | None, asymmetric: bool, out: Path, workers: Workers = HERE
) -> FoundCodec:
    """The best codec of at most `budget` bytes for a model's vectors, written to `out`, and a frontier of smaller ones.

    `data`: retrieval sets. `texts`: texts that nobody judged, whose answers are fp32's own ten nearest. Of the codecs that find
    most of fp32's neighbours, the sets' NDCG@10 chooses the best. `workers` encode. Raises InputError.
    """
    check_free(out)
    encoder = open_encoder(model, workers)
    sets = [Texts.of(encoder, each) for each in read_material(VerifySettings(tuple(data))).sets]
    sets += [Texts.ranked(encoder, texts, every_text(texts))] if texts else []
    halves = [_halves(each) for each in sets]
    choosing, judging = [each for each, _ in halves], [each for _, each in halves]
    trials = _tried(choosing, _sample(sets), codec_similarity(encoder.similarity), budget, asymmetric)
    best = max(_best(trials, budget, FINALISTS), key=lambda trial: _ndcg(choosing, trial))
    smaller = [_best(trials, int(share * budget), 1) for share in SHARES[1:]]
    chosen = {each[0].settings: each[0] for each in smaller if each and each[0].codec.bytes < best.codec.bytes}
    frontier = sorted(chosen.values(), key=lambda trial: trial.codec.bytes)
    points = tuple(_point(judging, trial) for trial in [*frontier, best])
    write_codec(out, encoder.marked(best.codec))
    return FoundCodec(encoder.source.name, budget, len(trials), tuple(each.data.name for each in sets), points)


def _halves(texts: Texts) -> tuple[Texts, Texts]:
    """The texts that codecs are chosen by, and those that they are judged by; no query is in both. Raises VectorError."""
    count = len(texts.data.queries)
    if count < 2:
        raise VectorError(f"{texts.data.name} has {count} query, and choosing and judging take one each")
    order = np.random.default_rng(0).permutation(count)
    choosing = _mask(count, order[: min(count // 2, CHOOSING_QUERIES)])
    judging = _mask(count, order[count // 2 :][:JUDGING_QUERIES])
    every = np.ones(len(texts.documents), bool)
    return texts.part(choosing, _searched(texts, choosing)), texts.part(judging, every)


def _searched(texts: Texts, queries: Mask) -> Mask:
    """The documents among which queries are searched: all that are judged for them, and others at even distances."""
    asked = itertools.compress(texts.data.query_ids, queries)
    judged = {name for query in asked for name in texts.data.qrels[query]}
    count = len(texts.documents)
    return np.isin(texts.data.document_ids, list(judged)) | _mask(count, _even(count, CHOOSING_DOCUMENTS))


def _even(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of the numbers below `count`, at even distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _mask(count: int, rows: npt.NDArray[np.int64]) -> Mask:
    found = np.zeros(count, bool)
    found[rows] = True
    return found


def _sample(sets: Sequence[Texts]) -> Floats:
    """Documents to fit bounds on, float32 (documents, dimensions)."""
    return np.concatenate([each.documents[_even(len(each.documents), FITTED_ON // len(sets))] for each in sets])


def _tried(sets: Sequence[Texts], sample: Floats, similarity: str, budget: int, asymmetric: bool) -> list[_Trial]:
    """A trial of every setting at every size of the frontier."""
    sizes = [int(share * budget) for share in SHARES]
    every = [each for size in sizes if size for each in _settings(sample.shape[1], size)]
    settings = [replace(each, asymmetric=asymmetric) for each in dict.fromkeys(every)]
    with stage("Trying codecs") as running:
        running.total(len(settings))

        def tried(each: VectorSettings) -> _Trial:
            codec = fitted(sample, each, similarity)
            recall, _ = mean_recall([texts.recall(codec, not asymmetric) for texts in sets])
            running.step()
            return _Trial(each, codec, recall)

        return on_cores(tried, settings)


def _settings(dimensions: int, size: int) -> Iterator[VectorSettings]:
    """Every level with every scaling, rotated or not, of as many dimensions as so many bytes hold, or as many times as wide."""
    for level, scaling, rotate in itertools.product(LEVELS, SCALINGS, (False, True)):
        numbers = fitting(level, size)
        if takes(level, scaling):
            widen = min(max(numbers // dimensions, 1), WIDEST)
            kept = None if numbers >= dimensions else numbers
            yield VectorSettings(level, dimensions=kept, scaling=scaling, rotate=rotate, widen=widen)


def _best(trials: Sequence[_Trial], size: int, count: int) -> list[_Trial]:
    """Of the codecs of at most so many bytes, `count` that find most of fp32's neighbours, the best first."""
    within = [each for each in trials if each.codec.bytes <= size]
    return sorted(within, key=lambda trial: -trial.recall)[:count]


def _ndcg(sets: Sequence[Texts], trial: _Trial) -> float:
    """NDCG@10, each set weighing the same."""
    return float(np.mean([each.scored(trial.codec, not trial.settings.asymmetric).mean("ndcg_at_10") for each in sets]))


def _point(sets: Sequence[Texts], trial: _Trial) -> CodecPoint:
    """A point of the frontier, judged on queries that it was not chosen by."""
    quantized, settings = not trial.settings.asymmetric, trial.settings
    exact = [each.scored(None, False) for each in sets]
    delta, low, high = gap([each.scored(trial.codec, quantized) for each in sets], exact)
    recall, rescored = mean_recall([each.recall(trial.codec, quantized) for each in sets])
    return CodecPoint(
        level=settings.level,
        scaling=settings.scaling,
        kept=trial.codec.kept,
        widen=settings.widen,
        rotate=settings.rotate,
        asymmetric=settings.asymmetric,
        bytes=trial.codec.bytes,
        reference_ndcg_at_10=float(np.mean([each.mean("ndcg_at_10") for each in exact])),
        delta=delta,
        ci_low=low,
        ci_high=high,
        recall=recall,
        rescored=rescored,
    )
