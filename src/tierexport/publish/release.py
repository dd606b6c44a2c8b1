"""From a verified folder to a hub: what speaks against it, what would change there, and the upload."""

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tierexport.artifact.folder import (
    CARD,
    CODEC,
    ENTRANCE,
    IMATRIX,
    PAGE,
    RECIPE,
    VERIFICATION,
    proven_files,
    read_verification,
)
from tierexport.artifact.manifest import MANIFEST, Manifest, read_manifest
from tierexport.artifact.verdicts import Verification
from tierexport.base.errors import PublishError
from tierexport.base.progress import stage
from tierexport.base.registry import FORMATS
from tierexport.publish.local_paths import local_paths
from tierexport.publish.protocol import Held, Target, has_digest
from tierexport.publish.publication import Change, Objection, Publication
from tierexport.publish.targets import open_target
from tierexport.report.card import Access, render_card
from tierexport.report.repository import PICTURE

MODULES, SETTINGS = ENTRANCE

RECORDS = (MANIFEST, VERIFICATION, PAGE, RECIPE)
"""What proves a release, beside the files that it is about."""

PROOF = "proof"
"""Of a repository of several sizes: the folder that has a folder for each."""


def _is_in_artifact(path: str) -> bool:
    """Whether a path in a repository lies in the folder of an artifact: it has the name of the format."""
    return path.startswith(tuple(f"{name}/" for name in FORMATS))


class There:
    """A place to publish to, as it is now. Its files are read only where it has to be known whose they are."""

    def __init__(self, target: Target, held: Held) -> None:
        self.target, self.held = target, held

    @functools.cached_property
    def recorded(self) -> Mapping[str, str]:
        """The files of the release that is there, SHA-256 by path, as its manifest has them."""
        if MANIFEST not in self.held.files:
            return {}
        try:
            found = json.loads(self.target.read(MANIFEST, self.held))["files"]
            return {str(name): str(digest) for name, digest in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    @functools.cached_property
    def has_entrance(self) -> bool:
        """Whether the modules.json there is a release's: it opens an artifact, or is what the manifest there records."""
        if MODULES not in self.held.files:
            return False
        content = self.target.read(MODULES, self.held)
        try:
            listed = json.loads(content)
            opens = [_is_in_artifact(f"{each['path']}/") for each in listed]
        except (ValueError, KeyError, TypeError, RecursionError):
            opens = []
        return any(opens) or self.recorded.get(MODULES) == hashlib.sha256(content).hexdigest()

    def stale(self, files: Mapping[str, Path]) -> Iterator[str]:
        """What is there of an earlier release and not in this one. A model of the user's own at the top is left alone."""
        for name in sorted(self.held.files):
            if name not in files and (_is_in_artifact(name) or self._is_ours(name) or self._is_of_several(name)):
                yield name

    def _is_of_several(self, name: str) -> bool:
        """Whether a file belongs to an earlier release of several sizes, which has a folder of proof for each."""
        tags = {path.split("/")[1] for path in self.held.files if path.startswith(f"{PROOF}/")}
        at_top = "/" not in name and any(f"-{tag}." in name for tag in tags)
        return bool(tags) and (at_top or name.startswith(f"{PROOF}/") or name == PICTURE)

    def _is_ours(self, name: str) -> bool:
        """Whether a file at the top belongs to an earlier release."""
        if name == MODULES:
            return self.has_entrance
        if name == SETTINGS:
            return self.has_entrance if MODULES in self.held.files else name in self.recorded
        if name == CODEC:
            return "model.safetensors" not in self.held.files or name in self.recorded
        if name in RECORDS:
            return bool(self.recorded)
        return name == IMATRIX and name in self.recorded

    def objections(self, files: Mapping[str, Path]) -> Iterator[Objection]:
        """What would be broken there."""
        other = MODULES in files and MODULES in self.held.files and not has_digest(files[MODULES], self.held.files[MODULES])
        if other and not self.has_entrance:
            yield Objection("other-model", f"{MODULES} there opens a model of its own, which nobody could open after this")


def check_place(target: str, create_pr: bool) -> None:
    """Raises PublishError for what is no place to publish to, MachineError for one that can't be reached."""
    with stage(f"Looking at {target}"):
        open_target(target, None, False, create_pr).held()


def publish(
    folder: Path,
    target: str,
    private: bool = False,
    revision: str | None = None,
    despite: Sequence[str] = (),
    dry_run: bool = False,
    create_pr: bool = False,
) -> Publication:
    """Put an artifact folder on a hub in one commit, or one pull request, unless it is there already.

    Raises PublishError for what is not verified, has failed a gate or was changed since, unless each objection is
    named in `despite`; ArtifactError where it is no artifact folder, MachineError where the hub can't be reached or
    refuses.
    """
    manifest, found = read_manifest(folder), read_verification(folder)
    objections = tuple(objections_to(folder, manifest, found))
    check(objections, despite, str(folder))
    place = open_target(target, revision, private, create_pr)
    with tempfile.TemporaryDirectory() as scratch:
        files = _files(folder, manifest, found, place, Path(scratch))
        offer = Offer(str(folder), f"{manifest.model.name}, {manifest.recipe.name}", files, objections)
        return put(offer, place, target, despite, dry_run)


@dataclass(frozen=True)
class Offer:
    """What is to be published: what errors and the commit call it, the files by paths in the repository, and what speaks
    against it wherever it is to go.
    """

    called: str
    message: str
    files: Mapping[str, Path]
    objections: tuple[Objection, ...]


def put(offer: Offer, place: Target, target: str, despite: Sequence[str], dry_run: bool) -> Publication:
    """Send what a place does not have of an offer, and remove what is there of an earlier release. Raises as `publish` does."""
    with stage(f"Looking at {target}"):
        held = place.held()
        there = There(place, held)
        changes = tuple(_changes(offer.files, held.files, tuple(there.stale(offer.files))))
        overruled = (*offer.objections, *there.objections(offer.files))
    check(overruled, despite, offer.called)
    if unknown := set(despite) - {each.name for each in overruled}:
        raise PublishError(f"--despite {sorted(unknown)[0]!r}: nothing of that name speaks against {offer.called}")
    done = Publication(target, changes, overruled)
    if dry_run or not done.sent:
        return done
    wanted = {change.path: offer.files[change.path] for change in done.sent if change.what != "removed"}
    removed = [change.path for change in done.sent if change.what == "removed"]
    return replace(done, url=place.upload(wanted, removed, held, offer.message))


def check(objections: Sequence[Objection], despite: Sequence[str], called: str) -> None:
    """Raises PublishError for what is not overruled."""
    standing = [each for each in objections if each.name not in despite]
    if standing:
        listed = "\n".join(f"  {each.name}: {each.reason}" for each in standing)
        raise PublishError(f"{called} is not published:\n{listed}\n--despite NAME overrules one, by the name before the colon")


def objections_to(folder: Path, manifest: Manifest, found: Verification) -> Iterator[Objection]:
    """What speaks against publishing a folder, wherever it is to go."""
    yield from _unproven(manifest, found)
    if manifest.conversion and not manifest.conversion.passed:
        first = manifest.conversion.failed[0]
        yield Objection("conversion", f"the GGUF was built though llama.cpp reads it otherwise ({first.name}: {first.cause})")
    now = proven_files(folder, manifest)
    yield from _changed(manifest.files, now)
    yield from _local(folder, [*now, MANIFEST, VERIFICATION, PAGE, CARD])


def _unproven(manifest: Manifest, found: Verification) -> Iterator[Objection]:
    """Verifications that failed, artifacts without one, gates that failed."""
    for verdict in found.verdicts:
        if verdict.status == "failed":
            yield Objection(f"{verdict.format} on {verdict.device}", f"it could not be verified: {verdict.reason}")
    for artifact in manifest.artifacts:
        if not any(each.format == artifact.format and each.status == "ok" for each in found.verdicts):
            yield Objection(f"unverified {artifact.format}", "it ran on no device: tierexport verify")
    for gate in found.gates:
        if not gate.passed:
            value = "was not measured" if gate.value is None else f"is {gate.value:.5f}"
            yield Objection(gate.name, f"the gate failed: on {gate.device}, {gate.format}, it {value}")


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Objection]:
    """Files that are not what was verified, by their digests."""
    if before != now:
        other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        yield Objection("changed", f"{', '.join(other[:3])} changed since it was verified: tierexport verify")


def _local(folder: Path, names: Sequence[str]) -> Iterator[Objection]:
    """The first path of this machine in the files."""
    if found_path := next(local_paths(folder, names), None):
        name, path = found_path
        remedy = "--set base_model=ORG/NAME builds it with its model's place on a hub instead"
        why = "which is on this machine alone: nobody else could repeat it"
        yield Objection("local-paths", f"{name} names {path!r}, {why}" + (f"; {remedy}" if name == RECIPE else ""))


def _files(folder: Path, manifest: Manifest, found: Verification, target: Target, scratch: Path) -> dict[str, Path]:
    """The release by paths in the repository; the card is written anew, for its snippets name the place."""
    names = [*proven_files(folder, manifest), MANIFEST, VERIFICATION, PAGE]
    access = Access(target.model, target.download)
    (scratch / CARD).write_text(render_card(manifest, found, (folder / RECIPE).read_text("utf-8"), access), "utf-8")
    return {name: folder / name for name in names if (folder / name).is_file()} | {CARD: scratch / CARD}


def _changes(files: Mapping[str, Path], held: Mapping[str, str], stale: Sequence[str]) -> Iterator[Change]:
    for name, path in sorted(files.items()):
        what = "new" if name not in held else "same" if has_digest(path, held[name]) else "changed"
        yield Change(name, path.stat().st_size, what)
    for name in stale:
        yield Change(name, 0, "removed")
