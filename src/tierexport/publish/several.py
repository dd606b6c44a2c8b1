"""Several sizes of one model in one repository: a GGUF for each at the top, one card, and the proof of each in its folder.

Programs find a file by its tag: what follows the last dash of its name. llama.cpp takes a tag for a part of a path, before a
dot or a dash, so that none may end another.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tierexport.artifact.folder import CARD, CODEC, IMATRIX, PAGE, RECIPE, VERIFICATION, proven_files, read_verification
from tierexport.artifact.manifest import MANIFEST, read_manifest
from tierexport.base.errors import PublishError
from tierexport.publish import release
from tierexport.publish.publication import Objection, Publication
from tierexport.publish.release import PROOF, Offer, check, objections_to, put
from tierexport.publish.targets import open_target
from tierexport.report.card import Access
from tierexport.report.pictures import sizes_picture
from tierexport.report.repository import PICTURE, Member, render_repository

RECORDS = (MANIFEST, VERIFICATION, PAGE, RECIPE, IMATRIX, CODEC)
"""What lies in the folder of a size's proof, where it has it."""


def publish(
    folders: Sequence[Path],
    target: str,
    private: bool = False,
    revision: str | None = None,
    despite: Sequence[str] = (),
    dry_run: bool = False,
    create_pr: bool = False,
) -> Publication:
    """Put an artifact folder, or several of one model, into one repository, in one commit or one pull request.

    Raises PublishError for folders that don't belong together or whose tags could be taken for each other, and otherwise as
    `release.publish` does.
    """
    if len(folders) == 1:
        return release.publish(folders[0], target, private, revision, despite, dry_run, create_pr)
    members = sorted((_member(folder) for folder in folders), key=lambda each: each.artifact.bytes)
    _check_together(members)
    called = ", ".join(str(each.folder) for each in members)
    objections = tuple(objection for each in members for objection in _objections(each))
    check(objections, despite, called)
    place = open_target(target, revision, private, create_pr)
    with tempfile.TemporaryDirectory() as scratch:
        files = {path: file for each in members for path, file in _files(each)}
        files |= {CARD: Path(scratch) / CARD, PICTURE: Path(scratch) / PICTURE}
        files[CARD].write_text(render_repository(members, Access(place.model, place.download)), "utf-8")
        files[PICTURE].write_bytes(sizes_picture([(each.tag, each.artifact.bytes, each.loss) for each in members]))
        offer = Offer(called, f"{members[0].manifest.model.name}: {', '.join(each.tag for each in members)}", files, objections)
        return put(offer, place, target, despite, dry_run)


def _member(folder: Path) -> Member:
    """A folder whose one artifact is a file. Raises PublishError."""
    manifest = read_manifest(folder)
    if len(manifest.artifacts) != 1 or not (folder / manifest.artifacts[0].path).is_file():
        raise PublishError(f"{folder} has to hold a GGUF alone: a repository of several sizes is one of files")
    return Member(folder, manifest, read_verification(folder))


def _check_together(members: Sequence[Member]) -> None:
    """Raises PublishError for other models, and for names by which a program would not find exactly one file."""
    for each in members[1:]:
        if each.manifest.model.digest != members[0].manifest.model.digest:
            raise PublishError(f"{each.folder} is of another model than {members[0].folder}: a repository is of one")
    for each in members:
        if not re.fullmatch(r"[A-Za-z0-9_]+", each.tag):
            raise PublishError(
                f"{each.folder}: {each.file} ends in no tag of letters, digits and underscores: build it with --set name=TAG"
            )
        found = [other.file for other in members if re.search(rf"{each.tag}[.-]", other.file, re.IGNORECASE)]
        if len(found) > 1:
            raise PublishError(f"the tag {each.tag} stands for {' and '.join(found)}: build one with another --set name=TAG")


def _objections(each: Member) -> Iterator[Objection]:
    for objection in objections_to(each.folder, each.manifest, each.found):
        yield Objection(objection.name, f"{each.folder}: {objection.reason}")


def _files(each: Member) -> Iterator[tuple[str, Path]]:
    """A size's files by their paths in the repository."""
    yield each.file, each.folder / each.artifact.path
    for name in {*RECORDS, *proven_files(each.folder, each.manifest)}:
        if name in RECORDS and (each.folder / name).is_file():
            yield str(PurePosixPath(PROOF) / each.tag / name), each.folder / name
