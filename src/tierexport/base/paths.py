"""Where tierexport keeps what it may throw away, and how users write paths."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Where stages that several recipes share are kept: TIEREXPORT_CACHE or the user's cache."""
    named = os.environ.get("TIEREXPORT_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("tierexport")


def expanded(name: str) -> Path:
    """A path with `~` resolved; where there is no such user it stays as it is, and is what will be said to be missing."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
