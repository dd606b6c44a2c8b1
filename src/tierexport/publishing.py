"""From a verified folder to a hub: what speaks against it, what would change there, and the upload."""

import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tierexport.artifact import (
    CARD,
    CODEC,
    MANIFEST,
    PAGE,
    RECIPE,
    VERIFICATION,
    proven_files,
    read_manifest,
    read_verification,
)
from tierexport.card import Place, render_card
from tierexport.errors import ArtifactError, PublishError
from tierexport.hubs import Hub, open_hub, same
from tierexport.hubs.publication import Change, Objection, Publication
from tierexport.progress import stage
from tierexport.verdicts import Verification

OURS = ("gguf/", "torchao/", CODEC)
"""What of a repository belongs to a release, by how paths begin: what it does not hold of that is removed."""


def publish(
    folder: Path, target: str, private: bool, revision: str | None, despite: Sequence[str], dry_run: bool
) -> Publication:
    """Put an artifact folder on a hub in one commit, unless it is there already.

    Raises PublishError for what is not verified, has failed a gate or was changed since, unless each objection is
    named in `despite`; ArtifactError where it is no artifact folder, MachineError where the hub can't be reached or
    refuses.
    """
    manifest, found = read_manifest(folder), read_verification(folder)
    overruled = _overruled(tuple(_objections(folder, manifest, found)), despite, folder)
    hub = open_hub(target, revision, private)
    with tempfile.TemporaryDirectory() as scratch:
        with stage(f"Looking at {target}"):
            files = _files(folder, manifest, found, hub, Path(scratch))
            held = hub.held()
            changes = tuple(_changes(files, held.files))
        done = Publication(target, changes, overruled)
        if dry_run or not done.sent:
            return done
        wanted = {change.path: files[change.path] for change in done.sent if change.what != "removed"}
        removed = [change.path for change in done.sent if change.what == "removed"]
        url = hub.upload(wanted, removed, held, f"{manifest['model']['name']}, {manifest['recipe']['name']}")
    return Publication(target, changes, overruled, url)


def _overruled(objections: tuple[Objection, ...], despite: Sequence[str], folder: Path) -> tuple[Objection, ...]:
    standing = [each for each in objections if each.name not in despite]
    if standing:
        listed = "\n".join(f"  {each.name}: {each.reason}" for each in standing)
        raise PublishError(f"{folder} is not published:\n{listed}\n--despite NAME overrules one, by the name before the colon")
    if unknown := set(despite) - {each.name for each in objections}:
        raise PublishError(f"--despite {sorted(unknown)[0]!r}: nothing of that name speaks against {folder}")
    return objections


def _objections(folder: Path, manifest: Mapping[str, Any], found: Verification) -> Iterator[Objection]:
    for verdict in found.verdicts:
        if verdict.status == "failed":
            yield Objection(f"{verdict.format} on {verdict.device}", f"it could not be verified: {verdict.reason}")
    for artifact in manifest["artifacts"]:
        if not any(each.format == artifact["format"] and each.status == "ok" for each in found.verdicts):
            yield Objection(f"unverified {artifact['format']}", "it ran on no device: tierexport verify")
    for gate in found.gates:
        if not gate.passed:
            value = "was not measured" if gate.value is None else f"is {gate.value:.5f}"
            yield Objection(gate.name, f"the gate failed: on {gate.device}, {gate.format}, it {value}")
    if not (manifest.get("conversion") or {"passed": True})["passed"]:
        first = manifest["conversion"]["failed"][0]
        yield Objection(
            "conversion", f"the GGUF was built though llama.cpp reads it otherwise ({first['name']}: {first['cause']})"
        )
    if manifest.get("files") != (now := proven_files(folder, manifest)):
        before = manifest.get("files") or {}
        other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        yield Objection("changed", f"{', '.join(other[:3])} changed since it was verified: tierexport verify")
    if path := next(_local_paths(folder), None):
        yield Objection("local-paths", f"{RECIPE} names {path!r}, which is on this machine alone: nobody else could repeat it")


def _local_paths(folder: Path) -> Iterator[str]:
    """Absolute paths among the values of the recipe inside an artifact folder."""
    try:
        waiting: list[Any] = [tomllib.loads((folder / RECIPE).read_text("utf-8"))]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / RECIPE} can't be read: {error}") from None
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and Path(value).is_absolute():
            yield value


def _files(folder: Path, manifest: Mapping[str, Any], found: Verification, hub: Hub, scratch: Path) -> dict[str, Path]:
    """The release by paths in the repository; the card is written anew, for its snippets name the place."""
    names = [*proven_files(folder, manifest), MANIFEST, VERIFICATION, PAGE]
    place = Place(hub.model, hub.download)
    (scratch / CARD).write_text(render_card(manifest, found, (folder / RECIPE).read_text("utf-8"), place), "utf-8")
    return {name: folder / name for name in names if (folder / name).is_file()} | {CARD: scratch / CARD}


def _changes(files: Mapping[str, Path], held: Mapping[str, str]) -> Iterator[Change]:
    for name, path in sorted(files.items()):
        what = "new" if name not in held else "same" if same(path, held[name]) else "changed"
        yield Change(name, path.stat().st_size, what)
    for name in sorted(held):
        if name.startswith(OURS) and name not in files:
            yield Change(name, 0, "removed")
