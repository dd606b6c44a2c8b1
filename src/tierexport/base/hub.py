"""The client of a Hugging Face hub that reads: fetches files into huggingface_hub's cache, and explains what goes wrong.

Knows no model and no data set.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tierexport.base.errors import InputError, MachineError, TierexportError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""`ORG/NAME[@REVISION]`."""


REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
"""`ORG/NAME` as hubs allow it; a card that names another `base_model` is refused."""


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder can be a repository of a hub."""
    return HUB_ID.fullmatch(name) is not None and not name.startswith((".", "/"))


# --- what goes wrong

ProblemKind = Literal["repository", "revision", "name", "login", "refused", "connection", "content"]
"""What a hub's client complains of: there is no such repository (or it is private), no such revision, no repository can have
that name, there is no token on this machine, the hub answered with another HTTP error, it did not answer, or the client itself
refuses what it is given.
"""


@dataclass(frozen=True)
class HubProblem:
    """What huggingface_hub raised. `status`: of the hub's answer, by HTTP, and 0 where there was none."""

    kind: ProblemKind
    error: BaseException
    status: int = 0

    @property
    def told(self) -> str:
        """The first line of the error, or of what a RuntimeError was made from, without secrets."""
        from huggingface_hub import get_token

        cause = self.error.__cause__ if isinstance(self.error, RuntimeError) else None
        return told(cause or self.error, get_token())


def told(error: BaseException, token: str | None) -> str:
    """The first line of an error, without the token or what signs an address."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = re.sub(r"\?[^\s'\"]*", "?…", line)
    return line.replace(token, "***") if token else line


@contextmanager
def hub_errors(explain: Callable[[HubProblem], TierexportError]) -> Iterator[None]:
    """Raises, for whatever huggingface_hub raises, the error that `explain` makes of it.

    The client's own error is not chained to it: its text may hold a token or a signed address, which no traceback should.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever HTTP library it uses

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise explain(_problem(error)) from None


def _problem(error: Exception) -> HubProblem:
    """An error by the kind of problem that it means."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if isinstance(error, errors.RepositoryNotFoundError):
            return HubProblem("repository", error, status)
        return HubProblem("revision" if isinstance(error, errors.RevisionNotFoundError) else "refused", error, status)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubProblem("login", error)
    if isinstance(error, errors.HFValidationError):
        return HubProblem("name", error)
    invalid = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)  # JSON: the answer was cut off
    return HubProblem("content" if invalid else "connection", error)


# --- fetching


def fetch(
    kind: Literal["model", "dataset"],
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    wrong: type[InputError],
    ignored: Sequence[str] = (),
) -> Path:
    """The snapshot folder, named by its commit, with the files that fit a pattern and were not `ignored`.

    Goes through huggingface_hub: its cache, HF_ENDPOINT and offline mode hold. Raises `wrong` when
    there is no such repository or revision, MachineError when the hub can't be reached.
    """
    import huggingface_hub

    with hub_errors(partial(_not_fetched, kind, repository, revision, wrong)):
        folder = huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=[*patterns], ignore_patterns=[*ignored]
        )
    return Path(folder)


def fetched(
    kind: Literal["model", "dataset"],
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
) -> Path | None:
    """The snapshot folder as `fetch` has left it on this machine; None where it has not, or was interrupted."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    here = partial(huggingface_hub.snapshot_download, local_files_only=True)
    try:
        folder = here(repository, repo_type=kind, revision=revision, allow_patterns=[*patterns], ignore_patterns=[*ignored])
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(folder)


def _not_fetched(
    kind: str, repository: str, revision: str | None, wrong: type[InputError], problem: HubProblem
) -> TierexportError:
    """Why files could not be fetched, and what to do."""
    if problem.kind == "repository":
        return wrong(
            f"the hub has no {kind} {repository}, or it is private or gated: log in, or check the name "
            "(a folder of that name is not there either)"
        )
    if problem.kind == "revision":
        return wrong(f"the hub's {repository} has no revision {revision!r}")
    if problem.kind == "name":
        return wrong(f"{repository!r} is no folder, and no hub can have a {kind} of that name")
    where = f"{repository}@{revision}" if revision else repository
    return MachineError(
        f"can't fetch {where} from the hub ({problem.told}): check the network and HF_ENDPOINT, or name a local folder"
    )
