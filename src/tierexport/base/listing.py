"""Files of a local folder or of a hub's repository, listed, and opened to read parts of them: no file is downloaded whole."""

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from tierexport.base.errors import ArtifactError, MachineError, TierexportError
from tierexport.base.hub import HubProblem, hub_errors

MOST_LISTED = 10_000
"""Entries of a folder or repository that are looked through."""

MOST_JSON_BYTES = BLOCK = 1 << 20
"""Bytes of the largest JSON file that is read, and of one request to a hub."""


@dataclass(frozen=True)
class ListedFile:
    """A file that can be opened for reading parts of it, here or on a hub; `where` is what errors call it."""

    where: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True)
class Listing:
    """A folder or repository: its files by their paths in it. `alone`: one file was asked for, and nothing else is listed.

    `mark` stands between the name and a path: ORG/NAME:PATH on a hub, FOLDER/PATH here.
    """

    name: str
    files: Mapping[str, ListedFile]
    alone: bool
    mark: str = "/"

    def called(self, path: str) -> str:
        """What a file or folder in it is called, "." being the whole."""
        return self.name if path == "." else f"{self.name}{self.mark}{path}"

    def read_json(self, path: str) -> Any:
        """What a JSON file holds, None where it is not there. Raises ArtifactError when it is too large or no JSON."""
        file = self.files.get(path)
        if file is None:
            return None
        if file.size > MOST_JSON_BYTES:
            raise ArtifactError(
                f"{file.where} has {file.size:,} bytes, and {MOST_JSON_BYTES:,} are read: "
                "inspect the file with the weights alone"
            )
        with file.open() as opened:
            raw = opened.read(MOST_JSON_BYTES)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{file.where} is not JSON ({error}): get it again, or inspect the file with the weights alone"
            ) from None


def _check_count(name: str, found: Sequence[Any]) -> None:
    if len(found) > MOST_LISTED:
        raise ArtifactError(f"{name} holds more than {MOST_LISTED:,} files, which are not looked through: name one of them")


# --- here


def local_listing(path: Path) -> Listing:
    """A file, or the files of a folder without hidden ones. Raises ArtifactError when they can't be listed."""
    if not path.is_dir():
        return Listing(str(path), {path.name: local_file(path)}, alone=True)
    found = list(itertools.islice(path.rglob("*"), MOST_LISTED + 1))
    _check_count(str(path), found)
    seen = {file.relative_to(path).as_posix(): file for file in found if file.is_file()}
    visible = {name: file for name, file in seen.items() if not any(part.startswith(".") for part in name.split("/"))}
    return Listing(str(path), {name: local_file(file) for name, file in visible.items()}, alone=False)


def local_file(path: Path) -> ListedFile:
    """A file of this machine. Raises ArtifactError when it is not there."""
    try:
        return ListedFile(str(path), path.stat().st_size, partial(_opened_here, path))
    except OSError as error:
        raise ArtifactError(f"can't read {path} ({error.strerror}): check the path") from None


@contextmanager
def _opened_here(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb", buffering=1 << 16) as opened:
            yield opened
    except OSError as error:
        raise ArtifactError(f"can't read {path} ({error.strerror}): check its permissions") from None


# --- on a hub


def hub_listing(target: str) -> Listing:
    """ORG/NAME[@REVISION][:FILE] at the commit that the revision has now.

    Raises ArtifactError when the hub has no such thing, MachineError when it can't be reached.
    """
    name, _, file = target.partition(":")
    repository, _, revision = name.partition("@")
    with hub_errors(partial(_explained, name)):
        commit, sizes = _files_there(name, repository, revision or None, file)
    if file and not sizes:
        raise ArtifactError(f"the hub's {name} has no file {file!r}: name {name} alone to see what it has")
    files = {
        path: ListedFile(f"{name}:{path}", size, partial(_opened_there, name, f"{repository}@{commit}/{path}", size))
        for path, size in sizes.items()
    }
    return Listing(name, files, bool(file), ":")


def _files_there(name: str, repository: str, revision: str | None, file: str) -> tuple[str, dict[str, int]]:
    """The commit that a revision has now, and the bytes of its files by their paths; of `file` alone, where that is given."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    commit = api.repo_info(repository, revision=revision, timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT).sha
    listed: Iterable[Any] = (
        api.get_paths_info(repository, [file], revision=commit)
        if file
        else api.list_repo_tree(repository, recursive=True, revision=commit)
    )
    found = list(itertools.islice(listed, MOST_LISTED + 1))
    _check_count(name, found)
    return str(commit), {each.path: each.size for each in found if isinstance(each, huggingface_hub.RepoFile)}


@contextmanager
def _opened_there(name: str, path: str, size: int) -> Iterator[BinaryIO]:
    """A file of a hub, of which a BLOCK more than what is read is fetched, and no more."""
    import huggingface_hub

    with hub_errors(partial(_explained, name)):
        hub = huggingface_hub.HfFileSystem()
        if size > BLOCK:
            _check_ranges(name, hub.url(path))
        with hub.open(path, "rb", block_size=BLOCK, size=size) as opened:
            yield cast(BinaryIO, io.BufferedReader(opened, 1 << 16))


def _check_ranges(name: str, url: str) -> None:
    """Raises MachineError when the hub answers a question for one byte with the whole file: that would be held in memory."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Range": "bytes=0-0"}
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206:
            raise MachineError(
                f"the hub sends whole files of {name} where a part is asked for (HTTP {answer.status_code} for a range): "
                "download the file with `hf download`, and inspect it here"
            )


def _explained(name: str, problem: HubProblem) -> TierexportError:
    if problem.kind == "repository":
        missing = "is no path here, and the hub has no such model, or it is private or gated"
        return ArtifactError(f"{name} {missing}: check the name, or log in")
    if problem.kind in ("revision", "name"):
        return ArtifactError(f"the hub has no {name}: check the name and the revision")
    where = f"{name} is no path here, and can't be read on the hub ({problem.told})"
    return MachineError(f"{where}: check the path, or the network and HF_ENDPOINT")
