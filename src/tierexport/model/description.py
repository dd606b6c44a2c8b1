"""What `models/NAME.toml` says of a model, and what else a user may name one by."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Strict, TypeAdapter, ValidationError

from tierexport.base.errors import SourceError
from tierexport.base.hub import REPOSITORY, is_hub_id
from tierexport.base.shipped import shipped
from tierexport.base.validation import CHECKED, Count, Flag, Key, first_mistake, keys_of, matching, nearest

FILE_NAME = r"(?!\.)[\w.-]{1,100}"
"""What the name of a model or a recipe may be: it becomes part of file names."""

String = Annotated[str, Strict()]
A_TEXT = Key("a text")
A_TABLE = Key("a table")
A_COUNT = Key("a whole number above zero")


@dataclass(frozen=True)
class Dense:
    """A Dense head after the pooling, by the keys and defaults of its config.json."""

    __pydantic_config__ = CHECKED

    in_features: Annotated[Count, A_COUNT]
    out_features: Annotated[Count, A_COUNT]
    bias: Annotated[Flag, Key("true or false")] = True
    activation_function: Annotated[String, A_TEXT] = "torch.nn.modules.activation.Tanh"


@dataclass(frozen=True)
class Description:
    """A file in `models/`: where a model comes from and what its own files may leave out.

    `config` has the keys of its config.json that decide its tensors, `dense` its Dense heads, in turn: what a plan needs where
    the files are not on this machine.
    """

    __pydantic_config__ = CHECKED

    source: Annotated[String, Key("a folder, ORG/NAME[@REVISION] or pypi:PACKAGE")]
    name: Annotated[String | None, A_TEXT] = None
    revision: Annotated[String | None, A_TEXT] = None
    base_model: Annotated[Annotated[String, matching(REPOSITORY)] | None, Key("ORG/NAME of a hub")] = None
    licence: Annotated[String | None, A_TEXT] = None
    languages: Annotated[tuple[String, ...], Key("a list of texts")] = ()
    pooling: Annotated[String | None, A_TEXT] = None
    max_tokens: Annotated[Count | None, A_COUNT] = None
    prompts: Annotated[Mapping[String, String], Key("a table of texts")] = field(default_factory=dict)
    published: Annotated[Mapping[String, Any], A_TABLE] = field(default_factory=dict)
    map: Annotated[Mapping[String, Any], A_TABLE] = field(default_factory=dict)
    config: Annotated[Mapping[String, Any], A_TABLE] = field(default_factory=dict)
    dense: tuple[Dense, ...] = ()


_DESCRIPTION = TypeAdapter(Description)


def describe(model: str, folder: Path) -> Description:
    """What is known of a model before its files are opened. `folder`: where relative paths start.

    A model of a hub that a file in `models/` describes is known by that, at the revision that the user names. Raises
    SourceError when `model` is nothing that a source can be.
    """
    if (folder / model).is_dir():
        return Description(source=str((folder / model).resolve()))
    if model.startswith("pypi:"):
        return Description(source=model)
    places = (shipped("models"), Path("models"), folder / "models")
    listed = {path.stem: path for place in places for path in place.glob("*.toml")}
    if is_hub_id(model):
        return replace(_description_of(model.partition("@")[0], listed.values()), source=model, revision=None)
    if model in listed:
        return _read_description(listed[model])
    raise SourceError(
        f"there is no model {model!r}: it is no folder, no ORG/NAME of a hub, no pypi:PACKAGE, and not described in models/"
        f"{nearest(model, sorted(listed))}"
    )


def _description_of(repository: str, files: Iterable[Path]) -> Description:
    """What the file says that describes this repository, ORG/NAME of a hub; else that it is one. Raises SourceError."""
    for path in files:
        if repository in path.read_text("utf-8", "replace"):
            known = _read_description(path)
            if repository in (known.source, known.base_model):
                return known
    return Description(source=repository)


def _read_description(path: Path) -> Description:
    """The description in a file; a source that is a folder beside it is made absolute. Raises SourceError."""
    try:
        known = _DESCRIPTION.validate_python(_document(path))
    except ValidationError as error:
        raise SourceError(f"{path}: {first_mistake(error, keys_of(Description))}") from None
    beside = path.parent / known.source
    return replace(known, source=str(beside.resolve())) if beside.is_dir() else known


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from None
