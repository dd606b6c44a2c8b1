"""The quick check at the end of a build: 143 sentences, each artifact against fp32, on the CPU."""

from collections.abc import Callable, Sequence

import numpy as np

from tierexport.datasets import screen
from tierexport.encode import encode, open_model, prompt_for
from tierexport.errors import ArtifactError
from tierexport.metrics import cosines, neighbours_kept
from tierexport.records import Artifact, Encoded, Source, Verdict
from tierexport.verify.readers import read_gguf, read_torchao


def screen_artifacts(
    artifacts: Sequence[Artifact], source: Source, step: Callable[[int], None] = lambda _: None
) -> tuple[Verdict, ...]:
    """A verdict on each artifact; one that can't be opened is "failed", with the reason."""
    sentences = screen()
    model = open_model(source)
    prompt, max_tokens = prompt_for(model.prompts, "passage"), model.max_seq_length or 512
    reference = encode(model, sentences, prompt)
    del model
    step(1)
    verdicts = []
    for artifact in artifacts:
        try:
            found = _read(artifact, sentences, prompt, max_tokens)
            verdicts.append(judge(artifact.format, reference, found))
        except ArtifactError as error:
            verdicts.append(Verdict(artifact.format, "cpu", "failed", reason=str(error)))
        step(1)
    return tuple(verdicts)


def _read(artifact: Artifact, sentences: Sequence[str], prompt: str, max_tokens: int) -> Encoded:
    if artifact.format == "gguf":
        return read_gguf(artifact.path, [prompt + sentence for sentence in sentences], max_tokens)
    return read_torchao(artifact.path, sentences, prompt)


def judge(name: str, reference: Encoded, found: Encoded) -> Verdict:
    """Compare vectors of the same texts. Raises ArtifactError for vectors that are no vectors."""
    if found.vectors.shape != reference.vectors.shape:
        raise ArtifactError(f"{name}: vectors of shape {found.vectors.shape}, fp32 has {reference.vectors.shape}")
    if not np.isfinite(found.vectors).all():
        raise ArtifactError(f"{name}: {int((~np.isfinite(found.vectors)).any(1).sum())} vectors hold NaN or infinity")
    similar = cosines(reference.vectors, found.vectors)
    return Verdict(
        format=name,
        device="cpu",
        status="ok",
        tokens_equal=found.tokens == reference.tokens,
        cos_mean=float(similar.mean()),
        cos_min=float(similar.min()),
        top10_retention=neighbours_kept(reference.vectors, found.vectors),
    )
