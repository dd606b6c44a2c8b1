"""Runs artifacts and the fp32 model over the same texts and judges what comes out.

Vectors are kept in the cache, so verifying again, or a second artifact of the same model, takes no longer than it has to.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tierexport.artifact.verdicts import ProbeVerdict, Verdict, Verification
from tierexport.base.errors import ArtifactError, DataError, MachineError
from tierexport.base.paths import expanded
from tierexport.base.records import Encoded, RetrievalSet, Source
from tierexport.datasets.beir import read_retrieval_set
from tierexport.datasets.calibration import read_sts, screen
from tierexport.formats import format_named
from tierexport.metrics.similarity import Similarity, cosines
from tierexport.model.encoder import encode
from tierexport.model.reference import Reference
from tierexport.model.vector_store import VectorStore
from tierexport.recipe.gates import Gate
from tierexport.recipe.schema import VerifySettings
from tierexport.vectors.codecs import Codec
from tierexport.verify import fidelity, gates, retrieval, sts
from tierexport.verify.opened import Judged, OpenArtifact, why_not
from tierexport.verify.probes import probes
from tierexport.verify.probing import ask_probes
from tierexport.verify.speed import Speed, side_by_side

SCREEN, STS = "screen", "sts"

Texts = dict[str, tuple[str, list[str]]]
"""Everything to encode: name → (kind of prompt, texts)."""


@dataclass(frozen=True)
class Material:
    """The texts of a verification beside the screen."""

    sets: tuple[RetrievalSet, ...] = ()
    sts: tuple[tuple[float, str, str], ...] = ()
    sts_name: str = ""


def read_material(settings: VerifySettings, folder: Path) -> Material:
    """Read what a recipe or a command names. Raises DataError, or MachineError for a hub out of reach."""
    sets = tuple(read_retrieval_set(each, folder) for each in settings.data)
    if twice := [name for name, count in Counter(each.name for each in sets).items() if count > 1]:
        raise DataError(f"two retrieval sets are named {twice[0]!r}: nobody could tell their figures apart")
    if settings.sts is None:
        return Material(sets)
    path = folder / expanded(settings.sts)
    return Material(sets, tuple(read_sts(path)), path.name)


def verify(
    artifacts: Sequence[Judged], source: Source, material: Material, required: Sequence[Gate], devices: Sequence[str],
    codec: Codec | None = None, say: Callable[[str], None] = lambda _: None,
) -> Verification:  # fmt: skip
    """A verdict on every artifact on every device, and on every gate; with a codec, another on the vectors as it stores them.

    An artifact that can't be opened or dies is "failed" with the reason, and the others are still
    judged. `say`: called with what is being encoded. Raises SourceError when the fp32 model can't be run.
    """
    judging = _Judging(Reference(source, say), _texts(material), material, codec)
    verdicts = [verdict for artifact in artifacts for device in devices for verdict in judging.verdicts(artifact, device)]
    judged = gates.judge(required, verdicts)
    return Verification(f"fp32 {source.name}, sentence-transformers, cpu", tuple(verdicts), judged, source.similarity)


def _texts(material: Material) -> Texts:
    found: Texts = {SCREEN: ("passage", screen())}
    for each in material.sets:
        queries, documents = _names_of(each)
        found[documents] = ("passage", list(each.documents))
        found[queries] = ("query", list(each.queries))
    if material.sts:
        found[STS] = ("passage", [sentence for _, *pair in material.sts for sentence in pair])
    return found


def _names_of(data: RetrievalSet) -> tuple[str, str]:
    return f"{data.name} queries", f"{data.name} documents"


@dataclass(frozen=True)
class _Judging:
    """What every artifact is judged with: the fp32 model, the texts, and the codec that vectors may be stored by."""

    reference: Reference
    texts: Texts
    material: Material
    codec: Codec | None

    def verdicts(self, artifact: Judged, device: str) -> Iterator[Verdict]:
        """The verdict on an artifact on a device and, with a codec, on its vectors as stored."""
        if reason := why_not(format_named(artifact.format), device):
            yield Verdict(artifact.format, device, "not run", reason)
            return
        expected = {name: self.reference.encode(name, *each) for name, each in self.texts.items()}
        try:
            with closing(OpenArtifact(artifact, device, self.reference)) as opened:
                found = self._encoded(opened, expected)
                probed, speed = self._probed(opened), self._speed(opened)
        except (ArtifactError, MachineError) as error:
            why = str(error).replace(f"{artifact.path.parent}/", "")  # which a reader of verify.json does not have
            yield Verdict(artifact.format, device, "failed", why)
            return
        yield replace(self._judged(artifact, device, expected, found), **_told(speed), probes=probed)
        if self.codec:
            stored = {name: _stored(vectors, self.codec, self.texts[name][0]) for name, vectors in found.items()}
            verdict = self._judged(artifact, device, expected, stored)
            yield replace(verdict, vectors=self.codec.name, token_examples=())

    def _encoded(self, opened: OpenArtifact, expected: Mapping[str, Encoded]) -> dict[str, Encoded]:
        found = {name: opened.encode(name, *each) for name, each in self.texts.items()}
        for name in self.texts:
            fidelity.check_shape(opened.artifact.path.name, expected[name], found[name])
        return found

    def _probed(self, opened: OpenArtifact) -> tuple[ProbeVerdict, ...]:
        """What a converted artifact makes of the texts on which conversions go wrong; whoever made it, rounding included."""
        if not opened.format.converted_by_others:
            return ()
        return ask_probes(opened, probes(self.reference.source, self.reference.max_tokens))

    def _speed(self, opened: OpenArtifact) -> Speed:
        """Texts per second of the artifact and of fp32, on passages of the largest set."""
        self.reference.say(f"{opened.artifact.format} on {opened.device}: speed")
        kind, passages = max(self.texts.values(), key=lambda each: len(each[1]))
        prompt, model = self.reference.prompts[kind], self.reference.model(opened.device)
        return side_by_side(
            passages,
            lambda sample, folder: encode(model, sample, prompt, VectorStore(folder)),
            lambda sample, folder: opened.made(list(sample), prompt, folder),
        )

    def _judged(self, artifact: Judged, device: str, expected: Mapping[str, Encoded], found: Mapping[str, Encoded]) -> Verdict:
        """The figures of an artifact's vectors beside fp32's, by name of what was encoded."""
        similarity, material = Similarity.of(self.reference.source), self.material
        sentences = self.texts[SCREEN][1]
        reference, ours = expected[SCREEN], found[SCREEN]
        same = fidelity.same_tokens(reference, ours)
        return Verdict(
            format=artifact.format,
            device=device,
            status="ok",
            tokens_equal=bool(same.all()),
            tokens_share=float(same.mean()),
            token_examples=fidelity.token_examples(sentences, reference, ours, same),
            fidelity=fidelity.measure(reference, ours, None, similarity),
            cosines=tuple(float(each) for each in cosines(np.asarray(reference.vectors), np.asarray(ours.vectors))),
            same_tokens=fidelity.measure(reference, ours, same, similarity) if not same.all() and same.sum() > 10 else None,
            retrieval=tuple(
                retrieval.judge(each, _vectors_of(each, expected), _vectors_of(each, found), similarity)
                for each in material.sets
            ),
            sts=sts.judge(material.sts_name, [each[0] for each in material.sts], expected[STS], found[STS], similarity)
            if material.sts
            else None,
        )


def _told(speed: Speed) -> dict[str, Any]:
    """A speed as a verdict has it."""
    return {
        "texts_per_second": speed.ours,
        "reference_texts_per_second": speed.reference,
        "texts_per_second_ratio_ci": speed.ratio_ci,
        "texts_per_second_reason": speed.reason,
    }


def _stored(found: Encoded, codec: Codec, kind: str) -> Encoded:
    """Vectors as they come back from the codec; queries as they are, where it leaves them."""
    if kind == "query" and codec.asymmetric:
        return found
    return replace(found, vectors=codec.restored(found.vectors))


def _vectors_of(data: RetrievalSet, vectors: Mapping[str, Encoded]) -> retrieval.Vectors:
    return retrieval.Vectors(*(vectors[name] for name in _names_of(data)))
