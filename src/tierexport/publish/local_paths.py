"""Paths of this machine in what would be published: they lead nobody else anywhere, and name a user's folders."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tierexport.artifact.folder import RECIPE
from tierexport.base.errors import ArtifactError
from tierexport.base.listing import local_file
from tierexport.formats import all_formats

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json")
"""Files in which anything between slashes is a token."""

LOCAL = re.compile(
    r"""(?<![\w.:/<>~$})-])~?/[\w.+@-]+/[\w.+@-][^\s"'`<>|)\]}]*  # /home/me/model, ~/models/mine
    |file://[^\s"'`<>|)\]}]+
    |(?<!\w)[A-Za-z]:\\[\w.+@-][^\s"'`<>|)\]}]*""",
    re.VERBOSE,
)
"""A path that starts at the root of a file system or at a home, and not in the middle of an address."""


def local_paths(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Files of a folder that name such a path, with the path; the recipe's come first. Raises ArtifactError."""
    for value in _recipe_texts(folder / RECIPE):
        if Path(value).is_absolute():
            yield RECIPE, value
    for name in names:
        path = folder / name
        if path.is_file() and path.name not in VOCABULARIES:
            for text in _texts(path):
                yield from ((name, found[0]) for found in LOCAL.finditer(text))


def _recipe_texts(path: Path) -> Iterator[str]:
    try:
        return _strings(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from None


def _texts(path: Path) -> Iterator[str]:
    """What a file says in words: a text file whole, the values of JSON, the metadata of weights."""
    if path.suffix in (".md", ".html", ".toml", ".txt"):
        yield path.read_text("utf-8", "replace")
    elif path.suffix == ".json":
        try:
            yield from _strings(json.loads(path.read_text("utf-8")))
        except (ValueError, RecursionError):
            yield path.read_text("utf-8", "replace")
    else:
        for fmt in all_formats():
            if path.name.endswith(fmt.suffix):
                with suppress(ArtifactError):  # it is none, which is for others to say
                    yield from _strings(fmt.metadata(local_file(path)))


def _strings(value: Any) -> Iterator[str]:
    """Every text within a value."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, str):
        yield value
