"""What an artifact tells others of files that are on this machine: their names and digests, and never where they lie.

Where they lie is kept in the cache under their digests, so that whoever built an artifact can verify it again.
"""

import copy
import json
import os
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
from tierexport.base.records import Recipe, Source, VerifySettings
from tierexport.datasets.beir import split_off
from tierexport.model.source import open_source
from tierexport.recipe.schema import PATH_KEYS, settle_paths


@dataclass(frozen=True)
class Shared:
    """A recipe as an artifact has it, and `texts`: {key, name, digest} of each local file or folder of texts that it names."""

    document: dict[str, Any]
    texts: tuple[TextsEntry, ...]


def share(recipe: Recipe, source: Source, imatrix: bool) -> Shared:
    """The recipe as resolved, without paths but for that of a model of which only the folder is known.

    `imatrix`: whether the one that it names lies beside it. Where everything lies is noted in the cache.
    """
    document = copy.deepcopy(dict(recipe.document))
    settle_paths(document, PATH_KEYS, recipe.folder)
    _note(source.digest, {"model": document["model"], "folder": os.path.abspath(recipe.folder)})  # noqa: PTH100
    if source.shared_spec != source.spec:
        document["model"] = source.shared_spec
    if recipe.vectors and recipe.vectors.codec:
        document["vectors"] = {"codec": CODEC}  # which lies beside the recipe
    if recipe.calibration.imatrix and imatrix:
        document["calibration"]["imatrix"] = IMATRIX
    texts: list[TextsEntry] = []
    for key in ("calibration.texts", "calibration.imatrix", "verify.data", "verify.sts"):
        table, _, last = key.partition(".")
        if last in document.get(table, {}):
            value = document[table][last]
            document[table][last] = (
                [_named(each, key, texts) for each in value] if isinstance(value, list) else _named(value, key, texts)
            )
    return Shared(document, tuple(texts))


def _named(value: str, key: str, texts: list[TextsEntry]) -> str:
    """What is said in place of a path: its last part."""
    place, split = split_off(value, Path()) if key == "verify.data" else (value, None)
    path = Path(place)
    if not path.is_absolute():
        return value
    digest = _digest(path)
    name = path.name if split is None else f"{path.name}:{split}"
    texts.append(TextsEntry(key, name, digest))
    _note(digest, {"path": value})
    return name


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
    where = _noted(model.digest)
    if where:
        try:
            found = open_source(where["model"], Path(where["folder"]))
        except (InputError, MachineError, KeyError):
            pass
        else:
            if found.digest == model.digest:
                return found
    try:
        return open_source(model.spec, folder)
    except (InputError, MachineError) as error:
        raise type(error)(f"{error}; --model names a folder with the fp32 model's files, where there is one") from error


def relocated(settings: VerifySettings, texts: Sequence[TextsEntry]) -> VerifySettings:
    """A recipe's verification with the names of local texts replaced by their paths, where they are on this machine.

    Raises DataError where one is no longer what it was.
    """
    known = {(each.key, each.name): each.digest for each in texts}

    def path(key: str, name: str) -> str:
        digest = known.get((key, name), "")
        where = _noted(digest).get("path") if digest else None
        if where is None:
            return name
        there = Path(split_off(where, Path())[0] if key == "verify.data" else where)
        if there.exists() and _digest(there) != digest:
            raise DataError(f"{there} has changed since the artifact was built")
        return where if there.exists() else name

    data = tuple(path("verify.data", each) for each in settings.data)
    return replace(settings, data=data, sts=settings.sts and path("verify.sts", settings.sts))
