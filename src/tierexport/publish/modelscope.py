"""ModelScope, through its own client (`pip install "tierexport[modelscope]"`): its token and its endpoint hold.

The client's `upload_folder` won't do: it commits what it has where a file failed and hides why, skips what its own notes call
committed, removes in a commit of its own, and prints. What lies beneath it uploads files and makes one commit of everything.
"""

import base64
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tierexport.artifact.folder import CARD
from tierexport.base.digests import file_digest
from tierexport.base.errors import MachineError, PublishError
from tierexport.base.hub import told
from tierexport.base.libraries import need
from tierexport.base.progress import stage
from tierexport.publish.protocol import Held

KIND, MAIN = "model", "master"
TRIES = 4
AGAIN = "run the same command again, and what was uploaded is not sent twice"
Found = TypeVar("Found")


class ModelScope:
    """`modelscope:ORG/NAME`, at a branch. Everything goes into one commit; on top of which, ModelScope can't be told."""

    model = "."

    def __init__(self, repository: str, revision: str | None, private: bool) -> None:
        need("modelscope_hub", "modelscope", "publishing to ModelScope")
        from modelscope_hub import HubApi

        at = f" --revision {revision}" if revision else ""
        self.download = f"modelscope download --model {repository} --local_dir .{at}"
        self._repository, self._branch, self._private = repository, revision or MAIN, private
        self._api = HubApi()

    def held(self) -> Held:
        """The branch's files. Raises PublishError where there is no such branch, and where --private finds it public."""
        from modelscope_hub.constants import Visibility

        with _explained(self._repository):
            there = _found(lambda: self._api.get_repo(self._repository, KIND))
            if there and self._private and there.visibility != Visibility.PRIVATE:
                raise PublishError(f"{self._repository} is there already, and public: leave out --private, or make it private")
            listed = _found(lambda: self._api.list_repo_files(self._repository, KIND, revision=self._branch)) if there else None
        if listed is None and self._branch != MAIN:
            raise PublishError(f"{self._repository} has no branch {self._branch!r}: make it on ModelScope's site")
        files = {each.path: f"sha256:{each.sha256 or ''}" for each in listed or () if each.type != "tree"}
        return Held("" if there else None, files)

    def read(self, path: str, held: Held) -> bytes:  # noqa: ARG002
        """A file of the branch, past the client's cache."""
        with _explained(self._repository), tempfile.TemporaryDirectory() as scratch:
            self._api.download_file(self._repository, KIND, path, revision=self._branch, local_dir=scratch)
            return (Path(scratch) / path).read_bytes()

    def upload(self, files: Mapping[str, Path], removed: Sequence[str], held: Held, message: str) -> str:
        """Large files one by one, then one commit of all; makes the repository."""
        from modelscope_hub.config import get_default_config

        actions = [*(_addition(name, path) for name, path in files.items()), *map(_removal, removed)]
        with _explained(self._repository):
            if held.head is None:
                visibility = "private" if self._private else "public"
                self._api.create_repo(self._repository, KIND, visibility=visibility, license=_licence(files[CARD]))
            self._send({each["sha256"]: files[each["path"]] for each in actions if each["type"] == "lfs"})
            self._api.legacy.create_commit(self._repository, KIND, actions, message, self._branch)
        return f"{get_default_config().endpoint}/models/{self._repository}"

    def _send(self, large: Mapping[str, Path]) -> None:
        """Upload files by their SHA-256, unless ModelScope has them."""
        objects = [{"oid": digest, "size": path.stat().st_size} for digest, path in large.items()]
        found = self._api.legacy.validate_blobs(self._repository, KIND, objects) if objects else {}
        wanted = {large[digest]: address for digest, address in found.items() if address}
        with stage(f"Uploading to {self._repository}") as running:
            running.total(sum(path.stat().st_size for path in wanted))
            for path, address in wanted.items():
                self._send_one(path, address)
                running.step(path.stat().st_size)

    def _send_one(self, path: Path, address: str) -> None:
        """What breaks on the way is sent again: here the client doesn't."""
        from modelscope_hub.errors import HubError

        for attempt in range(TRIES):
            try:
                with path.open("rb") as file:
                    self._api.legacy.upload_blob(address, file, path.stat().st_size)
                return
            except HubError as error:
                if not error.retryable or attempt + 1 == TRIES:
                    raise
                time.sleep(2**attempt)


def _addition(name: str, path: Path) -> dict[str, Any]:
    """A file as an action of a commit: its content, or its digest where it is large by the client's own limits."""
    from modelscope_hub import constants

    size = path.stat().st_size
    large = size > constants.UPLOAD_LFS_FORCE_THRESHOLD_BYTES or path.suffix.lower() in constants.MODEL_LFS_SUFFIX
    if large and path.name.upper() not in constants.UPLOAD_INLINE_METADATA_PATHS:
        how = {"type": "lfs", "sha256": file_digest(path), "content": "", "encoding": ""}
    else:
        content = base64.b64encode(path.read_bytes()).decode()
        how = {"type": "normal", "sha256": "", "content": content, "encoding": "base64"}
    return {"action": "create", "path": name, "size": size, **how}


def _removal(name: str) -> dict[str, Any]:
    return {"action": "delete", "path": name, "type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}


def _licence(card: Path) -> str:
    """The card's licence as ModelScope spells it; where none is named, its client says Apache-2.0."""
    from huggingface_hub import metadata_load
    from modelscope_hub.constants import License

    named = str((metadata_load(card) or {}).get("license")).lower()
    return next((str(each) for each in License if each.lower() == named), str(License.OTHER))


def _found(ask: Callable[[], Found]) -> Found | None:
    """What is asked for, or None where ModelScope has nothing of the kind."""
    from modelscope_hub.errors import NotExistError

    try:
        return ask()
    except NotExistError:
        return None


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns what the client raises into one message."""
    from modelscope_hub.errors import AuthenticationError, HubError, PermissionDeniedError

    try:
        yield
    except (AuthenticationError, PermissionDeniedError) as error:
        why = "ModelScope does not take this login: modelscope login, with a token that may write there"
        raise MachineError(f"{repository}: {why} ({_told(error)})") from None
    except (HubError, OSError, ValueError) as error:  # ValueError: what answers is not ModelScope
        raise MachineError(f"{repository}: publishing to ModelScope failed; {AGAIN} ({_told(error)})") from None


def _told(error: Exception) -> str:
    from modelscope_hub.config import get_default_config

    return told(error, get_default_config().token)
