"""Which keys of a recipe are paths, and where relative ones start.

A relative path in a recipe starts at the recipe's folder, one in `--set` at the working directory, if it is there. Paths are
made absolute once, when a recipe is read.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tierexport.base.paths import expanded
from tierexport.datasets.beir import split_off

PATH_KEYS = ("model", "calibration.texts", "calibration.imatrix", "vectors.codec", "verify.data", "verify.sts")
"""Keys whose value is, or may be, a path or a list of them."""

MAY_BE_NAMES = ("model", "verify.data")
"""Of these what is not there stays as it is: a hub's repository, a package, a description, or nothing at all."""


def settle_existing(document: dict[str, Any], folder: Path, keys: Iterable[str]) -> None:
    """Make absolute what is there, seen from `folder`, among the values of these keys; the rest stays as it is."""

    def settled(key: str, value: str) -> str:
        return _existing(key, value, folder) or value

    _replace(document, set(PATH_KEYS) & set(keys), settled)


def settle_paths(document: dict[str, Any], folder: Path) -> None:
    """Make every path in a recipe document absolute; relative ones start at `folder`, whether they are there or not."""

    def settled(key: str, value: str) -> str:
        return _existing(key, value, folder) or (value if key in MAY_BE_NAMES else absolute(folder / expanded(value)))

    _replace(document, PATH_KEYS, settled)


def _existing(key: str, value: str, folder: Path) -> str | None:
    """The absolute path of what a value names, or None where nothing is there. A retrieval set's may end in `:SPLIT`."""
    place, split = split_off(value, folder) if key == "verify.data" else (value, None)
    path = folder / expanded(place)
    if not path.exists():
        return None
    return absolute(path) if split is None else f"{absolute(path)}:{split}"


def absolute(path: Path) -> str:
    """A path from the root, without `..`; a link keeps its name."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.resolve would follow links


def _replace(document: dict[str, Any], keys: Iterable[str], settled: Callable[[str, str], str]) -> None:
    """Replace the texts that stand at these keys, alone or in a list; "" and "builtin" are no paths."""

    def value(key: str, found: Any) -> Any:
        return settled(key, found) if isinstance(found, str) and found not in ("", "builtin") else found

    for key in keys:
        *parents, last = key.split(".")
        place: Any = document
        for part in parents:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict) and last in place:
            found = place[last]
            place[last] = [value(key, each) for each in found] if isinstance(found, list) else value(key, found)
