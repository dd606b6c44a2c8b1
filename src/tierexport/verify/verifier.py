"""Runs artifacts and the fp32 model over the same texts and judges what comes out.

Vectors are kept in the cache, so verifying again, or a second artifact of the same model, takes no longer than it has to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tierexport.artifact.verdicts import ProbeVerdict, Verdict, Verification
from tierexport.base.errors import ArtifactError, MachineError
from tierexport.base.records import Encoded
from tierexport.base.workers import HERE, Workers
from tierexport.formats import format_named
from tierexport.metrics.similarity import Similarity, cosines
from tierexport.model.encoder import encode
from tierexport.model.reference import Reference
from tierexport.model.vector_store import VectorStore
from tierexport.vectors.codecs import Codec
from tierexport.verify import fidelity, gates, retrieval, sts
from tierexport.verify.lengths import by_length
from tierexport.verify.material import Encodings, Material, TextGroup
from tierexport.verify.opened import Judged, OpenArtifact, why_not
from tierexport.verify.probes import probes
from tierexport.verify.probing import ask_probes
from tierexport.verify.speed import Speed, side_by_side
from tierexport.verify.subject import Subject


def verify(
    what: Subject, devices: Sequence[str], say: Callable[[str], None] = lambda _: None, workers: Workers = HERE
) -> Verification:
    """A verdict on every artifact on every device, and on every gate; with a codec, another on the vectors as it stores them.

    An artifact that can't be opened or dies is "failed" with the reason, and the others are still
    judged. `say`: called with what `workers` are encoding. Raises SourceError when the fp32 model can't be run.
    """
    judging = _Judging(Reference(what.source, say, workers), what.material, what.codec)
    verdicts = [each for artifact in what.artifacts for device in devices for each in judging.verdicts(artifact, device)]
    reference = f"fp32 {what.source.name}, sentence-transformers, cpu"
    return Verification(reference, tuple(verdicts), gates.judge(what.gates, verdicts), what.source.similarity)


@dataclass(frozen=True)
class _Judging:
    """What every artifact is judged with: the fp32 model, the texts, and the codec that vectors may be stored by."""

    reference: Reference
    material: Material
    codec: Codec | None

    def verdicts(self, artifact: Judged, device: str) -> Iterator[Verdict]:
        """The verdict on an artifact on a device and, with a codec, on its vectors as stored."""
        if reason := why_not(format_named(artifact.format), device):
            yield Verdict(artifact.format, device, "not run", reason)
            return
        expected = Encodings.of(self.material, self.reference_of)
        try:
            with closing(OpenArtifact(artifact, device, self.reference)) as opened:
                found = self._encoded(opened, expected)
                probed, lengths, speed = self._probed(opened), by_length(opened), self._speed(opened)
        except (ArtifactError, MachineError) as error:
            why = str(error).replace(f"{artifact.path.parent}/", "")  # which a reader of verify.json does not have
            yield Verdict(artifact.format, device, "failed", why)
            return
        yield replace(self._judged(artifact, device, expected, found), **_told(speed), probes=probed, lengths=lengths)
        if self.codec:
            verdict = self._judged(artifact, device, expected, found.stored(self.codec))
            yield replace(verdict, vectors=self.codec.name, token_examples=())

    def reference_of(self, group: TextGroup) -> Encoded:
        """What fp32 makes of a group of texts."""
        return self.reference.encode(group.name, group.kind, group.texts)

    def _encoded(self, opened: OpenArtifact, expected: Encodings) -> Encodings:
        """What an artifact makes of the texts. Raises ArtifactError where it fails, or is of another model."""
        found = Encodings.of(self.material, lambda group: opened.encode(group.name, group.kind, group.texts))
        for theirs, ours in zip(expected.every, found.every, strict=True):
            fidelity.check_shape(opened.artifact.path.name, theirs, ours)
        return found

    def _probed(self, opened: OpenArtifact) -> tuple[ProbeVerdict, ...]:
        """What a converted artifact makes of the texts on which conversions go wrong; whoever made it, rounding included."""
        if not opened.format.converted_by_others:
            return ()
        return ask_probes(opened, probes(self.reference.source, self.reference.max_tokens))

    def _speed(self, opened: OpenArtifact) -> Speed:
        """Texts per second of the artifact and of fp32, on the largest group of texts."""
        self.reference.say(f"{opened.artifact.format} on {opened.device}: speed")
        group = self.material.largest
        prompt, model = self.reference.prompts[group.kind], self.reference.model(opened.device)
        return side_by_side(
            group.texts,
            lambda sample, folder: encode(model, sample, prompt, VectorStore(folder)),
            lambda sample, folder: opened.made(list(sample), prompt, folder),
        )

    def _judged(self, artifact: Judged, device: str, expected: Encodings, found: Encodings) -> Verdict:
        """The figures of an artifact's vectors beside fp32's."""
        similarity = Similarity.of(self.reference.source)
        reference, ours = expected.screen, found.screen
        same = fidelity.same_tokens(reference, ours)
        return Verdict(
            format=artifact.format,
            device=device,
            status="ok",
            tokens_equal=bool(same.all()),
            tokens_share=float(same.mean()),
            token_examples=fidelity.token_examples(self.material.screen.texts, reference, ours, same),
            fidelity=fidelity.measure(reference, ours, None, similarity),
            languages=fidelity.by_language(reference, ours, same, self.material.screen_languages),
            cosines=tuple(float(each) for each in cosines(np.asarray(reference.vectors), np.asarray(ours.vectors))),
            same_tokens=fidelity.measure(reference, ours, same, similarity) if not same.all() and same.sum() > 10 else None,
            retrieval=tuple(
                retrieval.judge(*each, similarity, self.reference.workers)
                for each in zip(self.material.sets, expected.sets, found.sets, strict=True)
            ),
            sts=sts.judge(self.material.sts, expected.sts, found.sts, similarity)
            if self.material.sts and expected.sts and found.sts
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
