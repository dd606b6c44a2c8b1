"""Fetches files of a Hugging Face hub into huggingface_hub's cache. Knows no model and no data set."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tierexport.base.errors import InputError, MachineError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""`ORG/NAME[@REVISION]`."""


REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
"""`ORG/NAME` as hubs allow it; a card that names another `base_model` is refused."""


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder can be a repository of a hub."""
    return HUB_ID.fullmatch(name) is not None and not name.startswith((".", "/"))


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
    from huggingface_hub import errors as hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever HTTP library it uses

    where = f"{repository}@{revision}" if revision else repository
    try:
        folder = huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=[*patterns], ignore_patterns=[*ignored]
        )
    except hub.RepositoryNotFoundError as error:
        raise wrong(
            f"the hub has no {kind} {repository}, or it is private or gated: log in, or check the name "
            "(a folder of that name is not there either)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise wrong(f"the hub's {repository} has no revision {revision!r}") from error
    except hub.HFValidationError as error:
        raise wrong(f"{repository!r} is no folder, and no hub can have a {kind} of that name") from error
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MachineError(
            f"can't fetch {where} from the hub ({first}): check the network and HF_ENDPOINT, or name a local folder"
        ) from error
    return Path(folder)
