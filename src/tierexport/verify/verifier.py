"""Runs artifacts and the fp32 model over the same texts and judges what comes out.

Vectors are kept in the cache, under a key of what they were made from, so verifying again, or a
second artifact of the same model, takes no longer than it has to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from tierexport import encode as encoding
from tierexport.datasets import read_beir, read_sts, screen
from tierexport.encode import VectorStore, encode, open_encoded, open_model, prompt_for
from tierexport.errors import ArtifactError, MachineError
from tierexport.metrics import cosines
from tierexport.records import (
    Encoded,
    Gate,
    RetrievalSet,
    RetrievalVerdict,
    Source,
    StsVerdict,
    Verdict,
    Verification,
    VerifySettings,
)
from tierexport.verify import fidelity, gates, llama_worker, readers
from tierexport.verify.devices import why_not
from tierexport.verify.readers import read_gguf, read_torchao
from tierexport.verify.retrieval import difference, score
from tierexport.workdir import Stages, cache_dir, file_digest, folder_digests, value_digest

SCREEN = "screen"


@dataclass(frozen=True)
class Judged:
    """An artifact to verify: its format and where it lies, whoever made it."""

    format: str
    path: Path

    @property
    def digest(self) -> str:
        """SHA-256 over its files."""
        return file_digest(self.path) if self.path.is_file() else value_digest(folder_digests(self.path))


@dataclass(frozen=True)
class Material:
    """The texts of a verification beside the screen."""

    sets: tuple[RetrievalSet, ...] = ()
    sts: tuple[tuple[float, str, str], ...] = ()
    sts_name: str = ""


def read_material(settings: VerifySettings, folder: Path) -> Material:
    """Read what a recipe or a command names. Raises DataError."""
    sets = tuple(read_beir(folder / Path(each).expanduser()) for each in settings.data)
    if settings.sts is None:
        return Material(sets)
    path = folder / Path(settings.sts).expanduser()
    return Material(sets, tuple(read_sts(path)), path.name)


def verify(
    artifacts: Sequence[Judged], source: Source, material: Material, required: Sequence[Gate], devices: Sequence[str],
    step: Callable[[str], None] = lambda _: None,
) -> Verification:  # fmt: skip
    """A verdict on every artifact on every device, and on every gate.

    An artifact that can't be opened or dies is "failed" with the reason, and the others are still
    judged. `step` hears what is being encoded. Raises SourceError when the fp32 model can't be run.
    """
    texts = _texts(material)
    reference = _Reference(source, step)
    verdicts = []
    for artifact in artifacts:
        for device in devices:
            verdicts.append(_verdict(artifact, device, reference, texts, material))
    return Verification(f"fp32 {source.name}, sentence-transformers, cpu", tuple(verdicts), gates.judge(required, verdicts))


def _texts(material: Material) -> dict[str, tuple[str, list[str]]]:
    """Everything to encode: name → (kind of prompt, texts)."""
    found: dict[str, tuple[str, list[str]]] = {SCREEN: ("passage", screen())}
    for each in material.sets:
        found[f"{each.name} documents"] = ("passage", list(each.documents))
        found[f"{each.name} queries"] = ("query", list(each.queries))
    if material.sts:
        found["sts"] = ("passage", [sentence for _, *pair in material.sts for sentence in pair])
    return found


class _Reference:
    """The fp32 model, opened when something has to be encoded that the cache lacks."""

    def __init__(self, source: Source, step: Callable[[str], None]) -> None:
        self.source, self.step = source, step
        self._model = None
        self.prompts = {kind: prompt_for(source.prompts, kind) for kind in ("query", "passage")}

    @property
    def model(self):  # type: ignore[no-untyped-def]  # a SentenceTransformer, whose import is slow
        """The model itself."""
        self._model = self._model or open_model(self.source)
        return self._model

    def encode(self, name: str, kind: str, texts: list[str]) -> Encoded:
        self.step(f"fp32: {name}")
        prompt = self.prompts[kind]
        return _kept([self.source.digest, prompt, texts], lambda folder: encode(self.model, texts, prompt, VectorStore(folder)))


def _kept(made_of: list[object], make: Callable[[Path], Encoded]) -> Encoded:
    """Vectors from the cache, or made now and kept there."""
    code = [file_digest(Path(module.__file__ or "")) for module in (encoding, readers, llama_worker)]
    key = value_digest([code, *made_of])
    folder = Stages(cache_dir() / "vectors").run(key[:24], key, lambda folder: _discard(make(folder)))
    return open_encoded(folder)


def _discard(_: Encoded) -> None:
    """A stage's maker returns nothing: what it wrote is what counts."""


def _verdict(
    artifact: Judged, device: str, reference: _Reference, texts: dict[str, tuple[str, list[str]]], material: Material
) -> Verdict:
    reason = why_not(artifact.format, device)
    if reason:
        return Verdict(artifact.format, device, "not run", reason)
    expected = {name: reference.encode(name, *each) for name, each in texts.items()}
    try:
        found = {name: _encode(artifact, device, reference, name, *each) for name, each in texts.items()}
        for name in texts:
            fidelity.check_shape(artifact.path.name, expected[name], found[name])
    except (ArtifactError, MachineError) as error:
        return Verdict(artifact.format, device, "failed", str(error))
    return _judge(artifact, device, expected, found, material, texts[SCREEN][1])


def _encode(artifact: Judged, device: str, reference: _Reference, name: str, kind: str, texts: list[str]) -> Encoded:
    reference.step(f"{artifact.format} on {device}: {name}")
    prompt, limit = reference.prompts[kind], reference.source.max_tokens or reference.model.max_seq_length or 512

    def make(folder: Path) -> Encoded:
        if artifact.format == "gguf":
            return read_gguf(artifact.path, texts, limit, folder, prompt, gpu=device == "cuda")
        return read_torchao(artifact.path, texts, prompt, device, VectorStore(folder))

    return _kept([artifact.digest, device, limit, prompt, texts], make)


def _judge(
    artifact: Judged, device: str, expected: dict[str, Encoded], found: dict[str, Encoded], material: Material,
    sentences: list[str],
) -> Verdict:  # fmt: skip
    reference, ours = expected[SCREEN], found[SCREEN]
    same = fidelity.same_tokens(reference, ours)
    largest = max(expected, key=lambda name: len(expected[name].lengths))
    return Verdict(
        format=artifact.format,
        device=device,
        status="ok",
        tokens_equal=bool(same.all()),
        tokens_share=float(same.mean()),
        token_examples=fidelity.token_examples(sentences, reference, ours, same),
        fidelity=fidelity.measure(reference, ours),
        cosines=tuple(float(each) for each in cosines(np.asarray(reference.vectors), np.asarray(ours.vectors))),
        same_tokens=fidelity.measure(reference, ours, same) if not same.all() and same.sum() > 10 else None,
        texts_per_second=found[largest].texts_per_second,
        reference_texts_per_second=expected[largest].texts_per_second,
        retrieval=tuple(_retrieval(each, expected, found) for each in material.sets),
        sts=_sts(material, expected["sts"], found["sts"]) if material.sts else None,
    )


def _retrieval(data: RetrievalSet, expected: dict[str, Encoded], found: dict[str, Encoded]) -> RetrievalVerdict:
    names = [f"{data.name} {part}" for part in ("queries", "documents")]
    reference, ours = (score(data, *(each[name].vectors for name in names)) for each in (expected, found))
    judged = difference(reference.per_query["ndcg_at_10"], ours.per_query["ndcg_at_10"])
    deltas = ours.per_query["ndcg_at_10"] - reference.per_query["ndcg_at_10"]
    means = {measure: ours.mean(measure) for measure in ours.per_query}
    means |= {f"reference_{measure}": reference.mean(measure) for measure in reference.per_query}
    same = np.concatenate([fidelity.same_tokens(expected[name], found[name]) for name in names])
    return RetrievalVerdict(
        dataset=data.name,
        queries=len(data.queries),
        documents=len(data.documents),
        delta=judged.mean,
        ci_low=judged.ci_low,
        ci_high=judged.ci_high,
        p_value=judged.p_value,
        tokens_equal=float(same.mean()),
        cos_mean=float(np.concatenate(list(_cosines(expected[names[1]], found[names[1]]))).mean()),
        deltas=tuple(float(delta) for delta in deltas),
        **means,
    )


def _cosines(expected: Encoded, found: Encoded, rows: int = 8192) -> Iterator[np.ndarray]:
    for start in range(0, len(expected.vectors), rows):
        yield cosines(np.asarray(expected.vectors[start : start + rows]), np.asarray(found.vectors[start : start + rows]))


def _sts(material: Material, expected: Encoded, found: Encoded) -> StsVerdict:
    human = [each[0] for each in material.sts]
    ours, reference = (
        float(stats.spearmanr(human, cosines(np.asarray(each.vectors[::2]), np.asarray(each.vectors[1::2]))).statistic)
        for each in (found, expected)
    )
    return StsVerdict(material.sts_name, len(human), ours, reference)
