"""The Hugging Face hub, through its own client: its token, its endpoint, its large-file storage hold."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tierexport.base.errors import MachineError, PublishError, TierexportError
from tierexport.base.hub import HubProblem, hub_errors
from tierexport.publish.protocol import Held

AGAIN = "nothing half-done is left there: run the same command again, and what was uploaded is not sent twice"


class HuggingFace:
    """`hf:ORG/NAME`, at a branch. Everything goes into one commit on top of what was looked at, or into one pull request."""

    def __init__(self, repository: str, revision: str | None, private: bool, create_pr: bool = False) -> None:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars

        self.model = repository
        self.download = f"hf download {repository} --local-dir ." + (f" --revision {revision}" if revision else "")
        self._repository, self._revision, self._private, self._create_pr = repository, revision, private, create_pr
        self._explained = partial(_explained, repository)
        self._api = huggingface_hub.HfApi(library_name="tierexport")
        if not sys.stderr.isatty():
            disable_progress_bars()

    def held(self) -> Held:
        """The branch's head and files; those of the main branch where the branch is yet to be made."""
        from huggingface_hub import errors

        with hub_errors(self._explained):
            try:
                try:
                    return self._held(self._revision)
                except errors.RevisionNotFoundError:
                    return self._held(None)
            except errors.RepositoryNotFoundError as error:
                if error.response is not None and error.response.status_code == 404:
                    return Held(None, {})
                raise

    def _held(self, revision: str | None) -> Held:
        head = self._api.model_info(self._repository, revision=revision).sha
        tree = self._api.list_repo_tree(self._repository, recursive=True, revision=head)
        files = {each.path: each for each in tree if hasattr(each, "blob_id")}
        return Held(head, {path: _digest(each) for path, each in files.items()})

    def read(self, path: str, held: Held) -> bytes:
        """A file of the commit that was looked at, past the client's cache."""
        with hub_errors(self._explained), tempfile.TemporaryDirectory() as scratch:
            found = self._api.hf_hub_download(self._repository, path, revision=held.head, local_dir=scratch)
            return Path(found).read_bytes()

    def upload(self, files: Mapping[str, Path], removed: Sequence[str], held: Held, message: str) -> str:
        """One commit, refused by the hub when the branch has moved since `held`; makes repository and branch."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with hub_errors(self._explained):
            if held.head is None:
                self._api.create_repo(self._repository, private=self._private, exist_ok=True)
            if self._revision:
                self._api.create_branch(self._repository, branch=self._revision, exist_ok=True)
            now = self._api.model_info(self._repository, revision=self._revision)
            if self._private and not now.private:
                raise PublishError(f"{self._repository} is there already, and public: leave out --private, or make it private")
            done = self._api.create_commit(
                self._repository,
                [
                    *(CommitOperationAdd(name, path) for name, path in files.items()),
                    *(CommitOperationDelete(name) for name in removed),
                ],
                commit_message=message,
                revision=self._revision,
                parent_commit=held.head or now.sha,
                create_pr=self._create_pr,
            )
        return str(done.pr_url or done.commit_url)


def _digest(file: Any) -> str:
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"


def _explained(repository: str, problem: HubProblem) -> TierexportError:
    """What to tell who publishes."""
    if problem.kind in ("content", "name"):
        return PublishError(f"{repository}: the hub refuses the card's metadata: {problem.error}")
    if problem.kind == "login":
        return MachineError(f"{repository}: {_meaning(401)}")
    if problem.kind == "connection":
        return MachineError(f"{repository}: the connection to the hub broke; {AGAIN} ({problem.told})")
    return MachineError(f"{repository}: {_meaning(problem.status)} ({problem.told})")


def _meaning(status: int) -> str:
    """What an HTTP status of the hub means to who publishes."""
    if status in (401, 404):
        return "the hub does not take this login: hf auth login, with a token that may write there"
    if status == 403:
        return "the hub forbids it: this token may not write there, or there is no room left"
    if status == 412:
        return "somebody changed it meanwhile, so nothing was done: run the same command again"
    return f"the hub failed; {AGAIN}"
