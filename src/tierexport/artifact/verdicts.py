"""What a verification finds out, from one text set's figures to the whole of `verify.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter

from tierexport.artifact.reading import STRICT, validated


@dataclass(frozen=True)
class Fidelity:
    """How near an artifact's vectors are to fp32's on the same texts.

    `cos_*`: cosine to the fp32 vector (mean, 1st percentile, minimum); `top10_retention`: share of
    each text's ten nearest others that stay; `rank_correlation`: Spearman of all pairs' similarities;
    `relative_error`: mean squared change of the vectors over the mean squared distance between two texts' fp32 vectors,
    which verifications of earlier versions lack. What ends in `_ci` are 95 % intervals over texts, (low, high).
    """

    __pydantic_config__ = STRICT

    texts: int
    cos_mean: float
    cos_p1: float
    cos_min: float
    top10_retention: float
    rank_correlation: float
    cos_mean_ci: tuple[float, float]
    top10_ci: tuple[float, float]
    relative_error: float | None = None
    relative_error_ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class LanguageVerdict:
    """How near an artifact's vectors are to fp32's on the screen's sentences in a language, which is named by its code."""

    __pydantic_config__ = STRICT

    language: str
    texts: int
    tokens_equal: float
    cos_mean: float
    cos_min: float
    cos_mean_ci: tuple[float, float]


@dataclass(frozen=True)
class LengthVerdict:
    """How near an artifact's vectors are to fp32's on texts of so many tokens, on average."""

    __pydantic_config__ = STRICT

    tokens: int
    texts: int
    cos_mean: float
    cos_min: float


@dataclass(frozen=True)
class RetrievalVerdict:
    """One retrieval set: means over its queries, and the paired difference of NDCG@10 to fp32.

    `tokens_equal` is the share of its texts that have the reference's token ids; where some have
    not, `same_tokens` is the verdict on the set without them. `own_documents` is how many queries stand in the corpus
    themselves, whose own document was left out; `odd` is what was unusual in the set's files, and how often.
    """

    __pydantic_config__ = STRICT

    dataset: str
    queries: int
    documents: int
    ndcg_at_10: float
    recall_at_10: float
    mrr_at_10: float
    reference_ndcg_at_10: float
    reference_recall_at_10: float
    reference_mrr_at_10: float
    delta: float
    ci_low: float
    ci_high: float
    p_value: float
    tokens_equal: float
    cos_mean: float
    own_documents: int = 0
    odd: tuple[str, ...] = ()
    deltas: tuple[float, ...] = ()
    same_tokens: "RetrievalVerdict | None" = None

    @property
    def notes(self) -> str:
        """One line: what was unusual in the set, and how many queries' own documents were left out; "" where nothing was."""
        return notes_on(self.odd, self.own_documents)


def notes_on(odd: Sequence[str], own: int) -> str:
    """What was unusual in a set, and how many queries stand in its corpus, in one line."""
    few = "query stands in the corpus: not counted as its own answer"
    several = "queries stand in the corpus: not counted as their own answers"
    return "; ".join(filter(None, [", ".join(odd), f"{own} {several if own > 1 else few}" if own else ""]))


@dataclass(frozen=True)
class StsVerdict:
    """Spearman of cosines with human scores on sentence pairs, fp32's, and the paired difference."""

    __pydantic_config__ = STRICT

    dataset: str
    pairs: int
    spearman: float
    reference_spearman: float
    delta: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class ProbeVerdict:
    """What became of a text of a kind on which conversions go wrong: whether its token ids are fp32's, the cosine to fp32's
    vector, and where ids part. A probe that is not `required` is reported alone.
    """

    __pydantic_config__ = STRICT

    name: str
    text: str
    tokens_equal: bool
    cosine: float
    required: bool
    cause: str
    parting: str = ""

    def holds(self, least: float) -> bool:
        """Whether tokens are equal and the cosine is at least so much."""
        return self.tokens_equal and self.cosine >= least


@dataclass(frozen=True)
class Conversion:
    """The unquantized GGUF beside fp32 on the probes."""

    probes: tuple[ProbeVerdict, ...]
    least: float

    @property
    def failed(self) -> tuple[ProbeVerdict, ...]:
        """The required probes that came out otherwise."""
        return tuple(each for each in self.probes if each.required and not each.holds(self.least))

    @property
    def limits(self) -> tuple[ProbeVerdict, ...]:
        """The others that did."""
        return tuple(each for each in self.probes if not each.required and not each.holds(self.least))

    @property
    def passed(self) -> bool:
        """Whether no required probe failed."""
        return not self.failed

    @property
    def cos_min(self) -> float:
        """The least cosine of a required probe."""
        return min(each.cosine for each in self.probes if each.required)


@dataclass(frozen=True)
class Verdict:
    """One artifact on one device against the fp32 reference. `status`: ok, failed or not run.

    `tokens_equal` is whether every text of the screen has the reference's token ids,
    `tokens_share` the share that has; where they differ, `token_examples` shows some, and
    `same_tokens` is the fidelity on the texts that have them. The speeds are of the artifact and of
    fp32 on the same device, texts per second, taken in turns in one run, with the 95 % interval of their
    ratio; where the machine was not quiet enough there are none, and `texts_per_second_reason` says so.
    `vectors` is None where vectors were judged as they came, or the name of the codec that they were stored by before.
    `probes`: of a GGUF, what became of texts of the kinds on which conversions go wrong. `languages`: the fidelity in each
    language of the screen, where there are several; `lengths`: that on long texts, of a model that reads 512 tokens or more.
    """

    __pydantic_config__ = STRICT

    format: str
    device: str
    status: str
    reason: str | None = None
    tokens_equal: bool | None = None
    tokens_share: float | None = None
    token_examples: tuple[str, ...] = ()
    fidelity: Fidelity | None = None
    cosines: tuple[float, ...] = ()
    same_tokens: Fidelity | None = None
    texts_per_second: float | None = None
    reference_texts_per_second: float | None = None
    texts_per_second_ratio_ci: tuple[float, float] | None = None
    texts_per_second_reason: str | None = None
    retrieval: tuple[RetrievalVerdict, ...] = ()
    sts: StsVerdict | None = None
    vectors: str | None = None
    probes: tuple[ProbeVerdict, ...] = ()
    languages: tuple[LanguageVerdict, ...] = ()
    lengths: tuple[LengthVerdict, ...] = ()

    @property
    def label(self) -> str:
        """What tables call it: the format, and how vectors were stored."""
        return f"{self.format}, {self.vectors} vectors" if self.vectors else self.format

    @property
    def retrieval_shown(self) -> tuple[RetrievalVerdict, ...]:
        """Each retrieval set, followed by the same without the texts whose tokens differ, where some do."""
        return tuple(shown for each in self.retrieval for shown in (each, each.same_tokens) if shown)

    @property
    def speed_ratio(self) -> float | None:
        """How many times as many texts per second as fp32 on the same device."""
        if self.texts_per_second is None or self.reference_texts_per_second is None:
            return None
        return self.texts_per_second / self.reference_texts_per_second

    def as_json(self) -> dict[str, Any]:
        """As `verify.json` has it: the fidelity's figures beside the verdict's own."""
        whole = asdict(self) | {"texts_per_second_ratio": self.speed_ratio}
        figures = whole.pop("fidelity") or {each.name: None for each in fields(Fidelity)}
        return {**whole, **figures}


@dataclass(frozen=True)
class GateResult:
    """A gate judged on one artifact. `passed` is False too where there was nothing to judge."""

    __pydantic_config__ = STRICT

    name: str
    format: str
    device: str
    value: float | None
    limit: float
    passed: bool


@dataclass(frozen=True)
class Verification:
    """Everything a verification found out. `similarity`: by what vectors were compared, by sentence-transformers' name."""

    __pydantic_config__ = STRICT

    reference: str
    verdicts: tuple[Verdict, ...]
    gates: tuple[GateResult, ...] = ()
    similarity: str = "cosine"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the readers of its retrieval figures have to know of each set, a line each."""
        sets = {each.dataset: each.notes for verdict in self.verdicts for each in verdict.retrieval if each.notes}
        return tuple(f"{name}: {notes}" for name, notes in sets.items())

    @property
    def passed(self) -> bool:
        """Whether nothing failed, every format ran on some device, and every gate was judged and passed."""
        nothing_failed = all(verdict.status != "failed" for verdict in self.verdicts)
        return nothing_failed and not self.ran_nowhere and all(gate.passed for gate in self.gates)

    @property
    def ran_nowhere(self) -> tuple[str, ...]:
        """The formats that no device was there for."""
        ran = {verdict.format for verdict in self.verdicts if verdict.status != "not run"}
        return tuple(dict.fromkeys(verdict.format for verdict in self.verdicts if verdict.format not in ran))

    def as_json(self) -> dict[str, Any]:
        """As `verify.json` has it."""
        results = [verdict.as_json() for verdict in self.verdicts]
        return {
            "reference": self.reference,
            "similarity": self.similarity,
            "passed": self.passed,
            "results": results,
            "gates": [asdict(gate) for gate in self.gates],
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Verification":
        """What `as_json` was made of. Raises ValueError for anything else, saying what is wrong."""
        results = found.get("results")
        if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
            raise ValueError("results: a list of objects is missing")
        kept = {key: value for key, value in found.items() if key not in ("results", "passed")}
        return validated(_VERIFICATION, {**kept, "verdicts": [_nested(each) for each in results]})


def _nested(result: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict's JSON with the fidelity's figures in a table of their own, and without what is computed of others."""
    names = [each.name for each in fields(Fidelity)]
    figures = {name: result[name] for name in names if result.get(name) is not None}
    whole = {name: value for name, value in result.items() if name not in (*names, "texts_per_second_ratio")}
    if not result.get("texts_per_second_ratio_ci"):  # earlier versions stated speeds without an interval
        whole |= dict.fromkeys(("texts_per_second", "reference_texts_per_second"))
    return {**whole, "fidelity": figures or None}


_VERIFICATION = TypeAdapter(Verification)
