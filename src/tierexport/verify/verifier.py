"""Runs artifacts and the fp32 model over the same texts and judges what comes out.

Vectors are kept in the cache, so verifying again, or a second artifact of the same model, takes no longer than it has to.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tierexport.beir import read_retrieval_set
from tierexport.datasets import read_sts, screen
from tierexport.encode import VectorStore, encode
from tierexport.errors import ArtifactError, DataError, MachineError
from tierexport.metrics import Similarity, cosines
from tierexport.records import Encoded, Gate, RetrievalSet, Source, VerifySettings
from tierexport.vectors.codecs import Codec
from tierexport.verdicts import ProbeVerdict, Verdict, Verification
from tierexport.verify import fidelity, gates, probes, retrieval, sts
from tierexport.verify.devices import why_not
from tierexport.verify.kept import Judged, Reference, encode_artifact, opened
from tierexport.verify.speed import Speed, side_by_side
from tierexport.workdir import expanded

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
    codec: Codec | None = None, step: Callable[[str], None] = lambda _: None,
) -> Verification:  # fmt: skip
    """A verdict on every artifact on every device, and on every gate; with a codec, another on the vectors as it stores them.

    An artifact that can't be opened or dies is "failed" with the reason, and the others are still
    judged. `step` hears what is being encoded. Raises SourceError when the fp32 model can't be run.
    """
    texts = _texts(material)
    reference = Reference(source, step)
    verdicts = [
        verdict
        for artifact in artifacts
        for device in devices
        for verdict in _verdicts(artifact, device, reference, texts, material, codec)
    ]
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


def _verdicts(
    artifact: Judged, device: str, reference: Reference, texts: Texts, material: Material, codec: Codec | None
) -> Iterator[Verdict]:
    reason = why_not(artifact.format, device)
    if reason:
        yield Verdict(artifact.format, device, "not run", reason)
        return
    expected = {name: reference.encode(name, *each) for name, each in texts.items()}
    try:
        found = {name: encode_artifact(artifact, device, reference, name, *each) for name, each in texts.items()}
        for name in texts:
            fidelity.check_shape(artifact.path.name, expected[name], found[name])
        probed = _probe(artifact, device, reference) if artifact.format == "gguf" else ()
        speed = _speed(artifact, device, reference, texts)
    except (ArtifactError, MachineError) as error:
        why = str(error).replace(f"{artifact.path.parent}/", "")  # which a reader of verify.json does not have
        yield Verdict(artifact.format, device, "failed", why)
        return
    similarity = Similarity.of(reference.source)
    verdict = _judge(artifact, device, expected, found, material, texts[SCREEN][1], similarity)
    yield replace(
        verdict,
        texts_per_second=speed.ours,
        reference_texts_per_second=speed.reference,
        texts_per_second_ratio_ci=speed.ratio_ci,
        texts_per_second_reason=speed.reason,
        probes=probed,
    )
    if codec:
        stored = {name: _stored(vectors, codec, texts[name][0]) for name, vectors in found.items()}
        verdict = _judge(artifact, device, expected, stored, material, texts[SCREEN][1], similarity)
        yield replace(verdict, vectors=codec.name, token_examples=())


def _stored(found: Encoded, codec: Codec, kind: str) -> Encoded:
    """Vectors as they come back from the codec; queries as they are, where it leaves them."""
    if kind == "query" and codec.asymmetric:
        return found
    return replace(found, vectors=codec.restored(found.vectors))


def _probe(artifact: Judged, device: str, reference: Reference) -> tuple[ProbeVerdict, ...]:
    """What a GGUF makes of the texts on which conversions go wrong; whoever made it, rounding included."""
    asked = probes.probes(reference.source, reference.max_tokens)
    texts = probes.by_kind(asked)
    expected = {kind: reference.encode("probes", kind, each) for kind, each in texts.items()}
    found = {kind: encode_artifact(artifact, device, reference, "probes", kind, each) for kind, each in texts.items()}
    return probes.judge(asked, expected, found)


def _speed(artifact: Judged, device: str, reference: Reference, texts: Texts) -> Speed:
    """Texts per second of the artifact and of fp32, on passages of the largest set."""
    reference.step(f"{artifact.format} on {device}: speed")
    kind, passages = max(texts.values(), key=lambda each: len(each[1]))
    prompt, model = reference.prompts[kind], reference.model(device)
    return side_by_side(
        passages,
        lambda sample, folder: encode(model, sample, prompt, VectorStore(folder)),
        opened(artifact, device, prompt, reference.max_tokens),
    )


def _judge(
    artifact: Judged, device: str, expected: Mapping[str, Encoded], found: Mapping[str, Encoded], material: Material,
    sentences: list[str], similarity: Similarity,
) -> Verdict:  # fmt: skip
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
            retrieval.judge(each, _vectors_of(each, expected), _vectors_of(each, found), similarity) for each in material.sets
        ),
        sts=sts.judge(material.sts_name, [each[0] for each in material.sts], expected[STS], found[STS], similarity)
        if material.sts
        else None,
    )


def _vectors_of(data: RetrievalSet, vectors: Mapping[str, Encoded]) -> retrieval.Vectors:
    return retrieval.Vectors(*(vectors[name] for name in _names_of(data)))
