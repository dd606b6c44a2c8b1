"""How near two sets of vectors are: cosines, neighbours, ranks; on all texts and on like tokens."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tierexport.artifact.verdicts import Fidelity, LanguageVerdict
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Encoded
from tierexport.metrics.relative_error import Changes
from tierexport.metrics.similarity import COSINE, NEIGHBOURS, Similarity, cosines, neighbours_kept
from tierexport.model.vector_store import not_finite
from tierexport.verify.intervals import mean_interval, weighted_interval

EXAMPLES = 3


def check_shape(name: str, reference: Encoded, found: Encoded) -> None:
    """Refuse vectors that can't be this model's. Raises ArtifactError."""
    if found.vectors.shape != reference.vectors.shape:
        raise ArtifactError(
            f"{name}: vectors of {found.vectors.shape[1]} dimensions, where the fp32 model has "
            f"{reference.vectors.shape[1]}: it is an artifact of another model"
        )
    if bad := len(not_finite(found)):
        raise ArtifactError(f"{name}: {bad} of {len(found.vectors)} vectors hold NaN or infinity")


def measure(
    reference: Encoded, found: Encoded, rows: npt.NDArray[np.bool_] | None = None, similarity: Similarity = COSINE
) -> Fidelity:
    """Fidelity over the texts that `rows` selects, or all. Needs more than ten texts.

    Neighbours, ranks and the relative error are by the model's similarity; how near the vectors are is a cosine in any case.
    """
    from scipy import stats

    chosen = slice(None) if rows is None else rows
    a, b = np.asarray(reference.vectors[chosen]), np.asarray(found.vectors[chosen])
    near, changes = cosines(a, b), Changes.between(a, b, similarity)
    kept = neighbours_kept(a, b, NEIGHBOURS, similarity)
    every = (similarity.compared(prepared, prepared) for prepared in map(similarity.prepared, (a, b)))
    pairs = np.triu_indices(len(a), 1)
    return Fidelity(
        texts=len(a),
        cos_mean=float(near.mean()),
        cos_p1=float(np.percentile(near, 1)),
        cos_min=float(near.min()),
        top10_retention=float(kept.mean()),
        rank_correlation=float(stats.spearmanr(*(each[pairs] for each in every)).statistic),
        cos_mean_ci=mean_interval(near),
        top10_ci=mean_interval(kept),
        relative_error=changes.relative_error,
        relative_error_ci=weighted_interval(len(a), changes.relative_errors),
    )


def by_language(
    reference: Encoded, found: Encoded, same: npt.NDArray[np.bool_], languages: Sequence[str]
) -> tuple[LanguageVerdict, ...]:
    """The fidelity in each language, nothing where there is but one; `same` and `languages` are of each text."""
    near, spoken = cosines(np.asarray(reference.vectors), np.asarray(found.vectors)), np.array(languages)
    different = dict.fromkeys(languages)
    return tuple(
        LanguageVerdict(
            language=each,
            texts=int((spoken == each).sum()),
            tokens_equal=float(same[spoken == each].mean()),
            cos_mean=float(near[spoken == each].mean()),
            cos_min=float(near[spoken == each].min()),
            cos_mean_ci=mean_interval(near[spoken == each]),
        )
        for each in (different if len(different) > 1 else ())
    )


def same_tokens(reference: Encoded, found: Encoded) -> npt.NDArray[np.bool_]:
    """Whether each text has the same token ids, bool (texts,)."""
    same: npt.NDArray[np.bool_] = np.equal(reference.lengths, found.lengths)
    ends = [np.cumsum(each.lengths) for each in (reference, found)]
    for text in np.flatnonzero(same):
        length = int(reference.lengths[text])
        ours, theirs = (each.tokens[end[text] - length : end[text]] for each, end in zip((reference, found), ends, strict=True))
        same[text] = np.array_equal(ours, theirs)
    return same


def token_examples(texts: Sequence[str], reference: Encoded, found: Encoded, same: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """A few texts whose tokens differ, with both lists of ids."""
    return tuple(
        f"{texts[text][:60]!r}: {reference.ids(text)[:16]} in the reference, {found.ids(text)[:16]} here"
        for text in map(int, np.flatnonzero(~same)[:EXAMPLES])
    )
