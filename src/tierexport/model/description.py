"""What `models/NAME.toml` says of a model, and what else a user may name one by."""

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tierexport.base.errors import SourceError
from tierexport.base.hub import REPOSITORY, is_hub_id
from tierexport.base.shipped import shipped
from tierexport.model.folder import is_count, is_text

FILE_NAME = r"(?!\.)[\w.-]{1,100}"
"""What the name of a model or a recipe may be: it becomes part of file names."""


@dataclass(frozen=True)
class Description:
    """A file in `models/`: where a model comes from and what its own files may leave out."""

    source: str
    name: str | None = None
    revision: str | None = None
    base_model: str | None = None
    licence: str | None = None
    languages: Sequence[str] = ()
    pooling: str | None = None
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    map: Mapping[str, Any] = field(default_factory=dict)


def describe(model: str, folder: Path) -> Description:
    """What is known of a model before its files are opened. `folder`: where relative paths start.

    Raises SourceError when `model` is nothing that a source can be.
    """
    if (folder / model).is_dir():
        return Description(source=str((folder / model).resolve()))
    if model.startswith("pypi:") or is_hub_id(model):
        return Description(source=model)
    places = (shipped("models"), Path("models"), folder / "models")
    listed = {path.stem: path for place in places for path in place.glob("*.toml")}
    if model in listed:
        return _read_description(listed[model])
    near = difflib.get_close_matches(model, listed, n=1)
    raise SourceError(
        f"there is no model {model!r}: it is no folder, no ORG/NAME of a hub, no pypi:PACKAGE, and not among "
        f"{', '.join(sorted(listed))}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("source", "name", "revision", "licence", "pooling"), ("a text", is_text)),
    "base_model": ("ORG/NAME of a hub", lambda value: is_text(value) and bool(REPOSITORY.fullmatch(value))),
    "languages": ("a list of texts", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "prompts": ("a table of texts", lambda value: isinstance(value, dict) and all(map(is_text, value.values()))),
    "max_tokens": ("a whole number above zero", is_count),
    **dict.fromkeys(("published", "map"), ("a table", lambda value: isinstance(value, dict))),
}
"""What each key of a description has to be, in words and as a check."""


def _read_description(path: Path) -> Description:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from None
    if "source" not in document:
        raise SourceError(f"{path}: source is missing: a folder, ORG/NAME or pypi:PACKAGE")
    if unknown := set(document) - {each.name for each in fields(Description)}:
        raise SourceError(f"{path}: unknown key {sorted(unknown)[0]!r}")
    for key, value in document.items():
        if not _KINDS[key][1](value):
            raise SourceError(f"{path}: {key} has to be {_KINDS[key][0]}, not {value!r}")
    known = Description(**document)
    beside = path.parent / known.source
    return replace(known, source=str(beside.resolve())) if beside.is_dir() else known
