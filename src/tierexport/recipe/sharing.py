"""What an artifact tells others of files that are on this machine: their names and digests, and never where they lie.

Where they lie is kept in the cache under their digests, so that whoever built an artifact can verify it again.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tierexport.artifact.folder import CODEC, IMATRIX
from tierexport.artifact.manifest import ModelEntry, TextsEntry
from tierexport.base.digests import file_digest, folder_digests, value_digest
from tierexport.base.errors import DataError, InputError, MachineError
from tierexport.base.files import write_json
from tierexport.base.paths import cache_dir
from tierexport.base.records import Source
from tierexport.datasets.beir import split_off
from tierexport.model.source import open_source
from tierexport.recipe.schema import Recipe, VerifySettings

TEXT_KEYS = ("calibration.texts", "calibration.imatrix", "verify.data", "verify.sts")
"""Keys whose values an artifact's recipe has without the folders that they lie in."""


@dataclass(frozen=True)
class Shared:
    """A recipe as an artifact has it, and `texts`: {key, name, digest} of each local file or folder of texts that it names."""

    document: dict[str, Any]
    texts: tuple[TextsEntry, ...]


def share(recipe: Recipe, source: Source, imatrix: bool) -> Shared:
    """The recipe as resolved, without paths but for that of a model of which only the folder is known.

    `imatrix`: whether the one that it names lies beside it. Where everything lies is noted in the cache.
    """
    _note(source.digest, {"model": recipe.model, "folder": str(recipe.folder)})
    document = _without_places(recipe, source, imatrix)
    texts: list[TextsEntry] = []
    for key in TEXT_KEYS:
        table, _, last = key.partition(".")
        if last in document.get(table, {}):
            document[table][last], found = _named(document[table][last], key)
            texts += found
    return Shared(document, tuple(texts))


def _without_places(recipe: Recipe, source: Source, imatrix: bool) -> dict[str, Any]:
    """The recipe's document with the model as others can name it; what lies beside it in an artifact goes by its name there."""
    document = copy.deepcopy(dict(recipe.document))
    if source.shared_spec != source.spec:
        document["model"] = source.shared_spec
    if recipe.vectors and recipe.vectors.codec:
        document["vectors"] = {"codec": CODEC}
    if recipe.calibration.imatrix and imatrix:
        document["calibration"]["imatrix"] = IMATRIX
    return document


def _named(value: Any, key: str) -> tuple[Any, list[TextsEntry]]:
    """What is said in place of a path, or of a list of them: its last part; and an entry for what is there."""
    if isinstance(value, list):
        found = [_named(each, key) for each in value]
        return [name for name, _ in found], [text for _, texts in found for text in texts]
    place, split = split_off(value, Path()) if key == "verify.data" else (value, None)
    path = Path(place)
    if not path.is_absolute():
        return value, []
    name = path.name if split is None else f"{path.name}:{split}"
    if not path.exists():  # named, and not needed for this build
        return name, []
    digest = _digest(path)
    _note(digest, {"path": value})
    return name, [TextsEntry(key, name, digest)]


def _digest(path: Path) -> str:
    return file_digest(path) if path.is_file() else value_digest(folder_digests(path))


# --- where it lies on this machine


def _place(digest: str) -> Path:
    return cache_dir() / "places" / f"{digest}.json"


def _note(digest: str, where: Mapping[str, str]) -> None:
    if _noted(digest) != where:
        write_json(_place(digest), where)


def _noted(digest: str) -> Mapping[str, str]:
    """Where something of that digest lay when it was last built from; nothing where nobody here did."""
    try:
        found = json.loads(_place(digest).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def reopened(model: ModelEntry, folder: Path) -> Source:
    """The fp32 model that a manifest's `model` names: where it was built from, if that is here, or else by that name.

    Raises SourceError or MachineError.
    """
    if found := _where_it_was(model.digest):
        return found
    try:
        return open_source(model.spec, folder)
    except (InputError, MachineError) as error:
        raise type(error)(f"{error}; --model names a folder with the fp32 model's files, where there is one") from error


def _where_it_was(digest: str) -> Source | None:
    """The model of that digest where it was last built from, if it is still there and the same."""
    where = _noted(digest)
    try:
        found = open_source(where["model"], Path(where["folder"]))
    except (InputError, MachineError, KeyError):
        return None
    return found if found.digest == digest else None


def relocated(settings: VerifySettings, texts: Sequence[TextsEntry]) -> VerifySettings:
    """The verification of an artifact's recipe with local texts where they are on this machine; `texts` as `Shared` has them.

    Raises DataError where one is no longer what it was.
    """
    known = {(each.key, each.name): each.digest for each in texts}

    def path(key: str, value: str) -> str:
        name = Path(value).name if Path(value).is_absolute() else value  # it was made absolute as if it lay in the artifact
        return _still_there(key, known.get((key, name), "")) or value

    data = tuple(path("verify.data", each) for each in settings.data)
    return replace(settings, data=data, sts=settings.sts and path("verify.sts", settings.sts))


def _still_there(key: str, digest: str) -> str | None:
    """Where texts of that digest lie on this machine, or None. Raises DataError where they have changed."""
    where = _noted(digest).get("path") if digest else None
    if where is None:
        return None
    there = Path(split_off(where, Path())[0] if key == "verify.data" else where)
    if not there.exists():
        return None
    if _digest(there) != digest:
        raise DataError(f"{there} has changed since the artifact was built")
    return where
