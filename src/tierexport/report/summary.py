"""What an artifact is worth in one sentence that a person can repeat."""

from tierexport.artifact.manifest import ArtifactEntry, Manifest
from tierexport.artifact.verdicts import RetrievalVerdict, Verdict, Verification
from tierexport.base.sizes import shown_size

BUILTIN = "builtin"
"""The name of the retrieval set that comes with tierexport."""


def summary(manifest: Manifest, found: Verification) -> str:
    """The smallest artifact: fp32's size and its own, the factor, its mean cosine, and the loss on each retrieval set."""
    artifact = min(manifest.artifacts, key=lambda each: each.bytes)
    verdict = first_verdict(artifact, found)
    said = [sizes(manifest, artifact)]
    if verdict is None or verdict.fidelity is None:
        return f"{said[0]}, not verified"
    said.append(f"cosine {short_cosine(verdict.fidelity.cos_mean)}")
    return ", ".join([*said, *(f"NDCG@10 {difference(each)} on {set_name(each.dataset)}" for each in verdict.retrieval)])


def judgement(found: Verification) -> str:
    """Whether an artifact is verified, against what, and which gates that means."""
    gates = list(dict.fromkeys(gate.name for gate in found.gates))
    told = f"gates: {', '.join(gates)}" if gates else "without gates"
    return f"{'Verified' if found.passed else 'Not verified'} against {found.reference}; {told}"


def sizes(manifest: Manifest, artifact: ArtifactEntry) -> str:
    """An artifact's size beside fp32's, where that is known: "90.9 MB → 16.3 MB (5.6 × smaller)"."""
    whole, size = manifest.model.fp32_bytes, shown_size(artifact.bytes)
    return f"{shown_size(whole)} → {size} ({whole / artifact.bytes:.1f} × smaller)" if whole else size


def short_cosine(cosine: float) -> str:
    """A cosine with three digits, or with as many as tell it from 1, five at most."""
    return next((text for digits in (3, 4) if (text := f"{cosine:.{digits}f}") != f"{1:.{digits}f}"), f"{cosine:.5f}")


def signed(number: float) -> str:
    """A difference with its sign, as print has it."""
    return f"{number:+.3f}".replace("-", "−")


def first_verdict(artifact: ArtifactEntry, found: Verification) -> Verdict | None:
    """The first verdict on an artifact that ran, on its vectors as they come."""
    return next(
        (each for each in found.verdicts if each.format == artifact.format and each.fidelity and not each.vectors), None
    )


def difference(each: RetrievalVerdict) -> str:
    """What a retrieval set loses in NDCG@10, with its interval: "−0.002 (−0.007 to +0.004)"."""
    return f"{signed(each.delta)} ({signed(each.ci_low)} to {signed(each.ci_high)})"


def set_name(name: str) -> str:
    """A retrieval set as a sentence calls it."""
    return "the built-in set" if name == BUILTIN else name
