"""Several sizes of one model in one repository: GGUFs at the top, torchao in its own folder, one card, and proof of each size.

Programs find a GGUF by its tag: what follows the last dash of its name. llama.cpp takes a tag for a part of a path, before a
dot or a dash, so that none may end another.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tierexport.artifact.folder import CARD, CODEC, IMATRIX, read_verification
from tierexport.artifact.manifest import ArtifactEntry, read_manifest
from tierexport.base.digests import folder_digests
from tierexport.base.errors import PublishError
from tierexport.base.registry import FORMATS
from tierexport.formats import format_named
from tierexport.publish import release
from tierexport.publish.publication import Objection, Publication
from tierexport.publish.release import PROOF, RECORDS, Offer, check, objections_to, put
from tierexport.publish.targets import open_target
from tierexport.report.card import Access
from tierexport.report.pictures import sizes_picture
from tierexport.report.repository import PICTURE, Member, Size, by_format, chosen_of, render_repository


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
    sizes = [Size(folder, read_manifest(folder), read_verification(folder)) for folder in folders]
    _check_together(sizes)
    called = ", ".join(str(each.folder) for each in sizes)
    objections = tuple(objection for each in sizes for objection in _objections(each))
    check(objections, despite, called)
    members = tuple(_members(sizes))
    place = open_target(target, revision, private, create_pr)
    with tempfile.TemporaryDirectory() as scratch:
        files = _made(members, Access(place.model, place.download), Path(scratch))
        files |= {path: file for each in members for path, file in _laid(each)}
        files |= {path: file for each in sizes for path, file in _proof(each)}
        offer = Offer(
            called, f"{members[0].size.manifest.model.name}: {', '.join(each.tag for each in sizes)}", files, objections
        )
        return put(offer, place, target, despite, dry_run)


def _check_together(sizes: Sequence[Size]) -> None:
    """Raises PublishError for other models, and for names by which a program would not find exactly one file."""
    for each in sizes[1:]:
        if each.manifest.model.digest != sizes[0].manifest.model.digest:
            raise PublishError(f"{each.folder} is of another model than {sizes[0].folder}: a repository is of one")
    for each in sizes:
        if not re.fullmatch(r"[A-Za-z0-9_]+", each.tag):
            raise PublishError(
                f"{each.folder}: {each.name} ends in no tag of letters, digits and underscores: build it with --set name=TAG"
            )
        found = [other.name for other in sizes if re.search(rf"{each.tag}[.-]", f"{other.name}.", re.IGNORECASE)]
        if len(found) > 1:
            raise PublishError(f"the tag {each.tag} stands for {' and '.join(found)}: build one with another --set name=TAG")


def _objections(each: Size) -> Iterator[Objection]:
    for objection in objections_to(each.folder, each.manifest, each.found):
        yield Objection(objection.name, f"{each.folder}: {objection.reason}")


def _members(sizes: Sequence[Size]) -> Iterator[Member]:
    """What the repository holds, format after format, of each the smallest first.

    Files lie at the top by their names. Folders lie below the name of their format by their tags; equal ones lie there once,
    and where all are equal, or one folder is all there is, that is FORMAT/ itself, as in a repository of one size.
    """
    for name in FORMATS:
        held = [(each, artifact) for each in sizes for artifact in each.manifest.artifacts if artifact.format == name]
        distinct: dict[object, tuple[Size, ArtifactEntry]] = {}
        for size, artifact in sorted(held, key=lambda each: each[1].bytes):
            distinct.setdefault(_content(size.folder / artifact.path), (size, artifact))
        for size, artifact in distinct.values():
            at_top, below = PurePosixPath(artifact.path).name, f"{name}/" if len(distinct) == 1 else f"{name}/{size.tag}/"
            yield Member(size, artifact, below if (size.folder / artifact.path).is_dir() else at_top)


def _content(path: Path) -> object:
    """What equal folders have in common; a file has its name for itself. Raises PublishError for what is not there."""
    if not path.exists():
        raise PublishError(f"{path} is not there: build its folder again")
    return tuple(folder_digests(path).items()) if path.is_dir() else path


def _made(members: Sequence[Member], access: Access, scratch: Path) -> dict[str, Path]:
    """What is made for the repository as a whole: its card, the picture of all sizes, and what opens a folder by the
    repository's name.
    """
    (scratch / CARD).write_text(render_repository(members, access), "utf-8")
    points = {
        name: [(each.name, each.artifact.bytes, each.loss) for each in found] for name, found in by_format(members).items()
    }
    (scratch / PICTURE).write_bytes(sizes_picture(points))
    for name, each in chosen_of(members).items():
        format_named(name).write_entrance(each.here, scratch, each.path.rstrip("/"))
    return {each.name: each for each in scratch.iterdir()}


def _laid(each: Member) -> Iterator[tuple[str, Path]]:
    """An artifact's files by their paths in the repository."""
    if each.is_folder:
        yield from ((each.path + name, each.here / name) for name in folder_digests(each.here))
    else:
        yield each.path, each.here


def _proof(each: Size) -> Iterator[tuple[str, Path]]:
    """What proves a size, and what it was made by, where it has it, by paths in the repository."""
    for name in (*RECORDS, IMATRIX, CODEC):
        if (each.folder / name).is_file():
            yield str(PurePosixPath(PROOF) / each.tag / name), each.folder / name
