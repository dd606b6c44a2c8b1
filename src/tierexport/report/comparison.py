"""Artifacts side by side, from what their folders say of them: bytes, fidelity, retrieval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import ArtifactEntry, Manifest, read_manifest
from tierexport.artifact.verdicts import Verdict
from tierexport.base.errors import ArtifactError
from tierexport.report.figures import Interval


@dataclass(frozen=True)
class Retrieved:
    """NDCG@10 on one set, and its paired difference to fp32 with the 95 % interval."""

    ndcg_at_10: float
    delta: float
    ci: Interval


@dataclass(frozen=True)
class Compared:
    """One artifact on one device. `loss` is 1 − the mean cosine to fp32; intervals are 95 %.

    `relative_error` is None of an artifact that was verified before there was one.
    """

    name: str
    format: str
    device: str
    bytes: int
    stored_bits: float
    loss: float
    loss_ci: Interval
    relative_error: float | None
    relative_error_ci: Interval | None
    top10_retention: float
    top10_ci: Interval
    speed_ratio: float | None
    retrieval: dict[str, Retrieved]


def compare(folders: Sequence[Path]) -> tuple[Compared, ...]:
    """Every artifact in these folders on every device that it ran on, smallest first.

    Names are those of the recipes, with the model's where there are several models, and with the folder's where that is
    still the same. Raises ArtifactError for a folder that is named twice, that tierexport did not build or verify, or where
    nothing ran.
    """
    manifests = [read_manifest(folder) for folder in folders]
    found = []
    for folder, name, manifest in zip(folders, _names(folders, manifests), manifests, strict=True):
        sizes = {each.format: each for each in manifest.artifacts}
        results = [each for each in read_verification(folder).verdicts if each.status == "ok" and not each.vectors]
        if unknown := [each.format for each in results if each.format not in sizes]:
            raise ArtifactError(f"{folder} was verified as {unknown[0]}, which its manifest does not list: verify it again")
        found += [_compared(name, sizes[each.format], each) for each in results]
        if not results:
            raise ArtifactError(f"{folder}: no artifact in it ran on any device: verify it again")
    return tuple(sorted(found, key=lambda each: each.bytes))


def _names(folders: Sequence[Path], manifests: Sequence[Manifest]) -> list[str]:
    """What each folder is called, no two alike. Raises ArtifactError for a folder that is named twice."""
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise ArtifactError(f"{twice[0]} is named twice: a folder is no other than itself")
    several = len({each.model.digest for each in manifests}) > 1
    names = [f"{each.model.name} {each.recipe.name}" if several else each.recipe.name for each in manifests]
    for parts in range(1, max(len(place.parts) for place in places) + 1):
        if len(set(names)) == len(names):
            break
        alike = [names.count(name) > 1 for name in names]
        ends = ["/".join(place.parts[-parts:]) for place in places]
        names = [
            f"{name.partition(' (')[0]} ({end})" if same else name for name, same, end in zip(names, alike, ends, strict=True)
        ]
    return names


def _compared(name: str, artifact: ArtifactEntry, verdict: Verdict) -> Compared:
    if verdict.fidelity is None:
        raise ArtifactError(f"{name}: its verification lacks figures: verify it again")
    low, high = verdict.fidelity.cos_mean_ci
    return Compared(
        name=name,
        format=verdict.format,
        device=verdict.device,
        bytes=artifact.bytes,
        stored_bits=artifact.stored_bits,
        loss=1 - verdict.fidelity.cos_mean,
        loss_ci=(1 - high, 1 - low),
        relative_error=verdict.fidelity.relative_error,
        relative_error_ci=verdict.fidelity.relative_error_ci,
        top10_retention=verdict.fidelity.top10_retention,
        top10_ci=verdict.fidelity.top10_ci,
        speed_ratio=verdict.speed_ratio,
        retrieval={
            each.dataset: Retrieved(each.ndcg_at_10, each.delta, (each.ci_low, each.ci_high)) for each in verdict.retrieval
        },
    )


def as_json(compared: Sequence[Compared]) -> dict[str, Any]:
    """As `compare --json` prints it."""
    return {"artifacts": [asdict(each) for each in compared]}
