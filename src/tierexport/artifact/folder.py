"""What lies at a path: an artifact folder with its manifest and verification, or somebody's file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tierexport.artifact.verdicts import Verification
from tierexport.base.digests import file_digest, folder_digests
from tierexport.base.errors import ArtifactError

MANIFEST, VERIFICATION, RECIPE, CARD, PAGE, IMATRIX = (
    "manifest.json", "verify.json", "recipe.toml", "README.md", "report.html", "imatrix.gguf",
)  # fmt: skip
CODEC = "codec.safetensors"
"""How vectors are stored, beside a model that was trained for it or an artifact that was verified with it."""

ENTRANCE = ("modules.json", "config_sentence_transformers.json")
"""What makes `SentenceTransformer(FOLDER)` open the torchao folder inside an artifact folder."""


def proven_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file that a verification speaks of, by its path in the artifact folder."""
    found: dict[str, str] = {}
    for each in [artifact["path"] for artifact in manifest["artifacts"]] + [RECIPE, IMATRIX, CODEC, *ENTRANCE]:
        path = folder / each
        if path.is_dir():
            found |= {f"{each}/{name}": digest for name, digest in folder_digests(path).items()}
        elif path.is_file():
            found[each] = file_digest(path)
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that tierexport built. Raises ArtifactError when it is not one."""
    found = _read_object(folder / MANIFEST)
    try:
        for each in found["artifacts"]:
            if not (folder / each["path"]).resolve().is_relative_to(folder.resolve()):
                raise ArtifactError(f"{folder / MANIFEST} names {each['path']!r}, which lies outside the folder")
            str(each["format"]), int(each["bytes"]), float(each["stored_bits"])
        str(found["model"]["digest"]), str(found["model"]["spec"]), str(found["recipe"]["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is not a manifest that tierexport wrote: {error!r}") from None
    return found


def read_verification(folder: Path) -> Verification:
    """The verification of a folder that tierexport built. Raises ArtifactError when there is none."""
    found = _read_object(folder / VERIFICATION)
    try:
        return Verification.from_json(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / VERIFICATION} is not what this version of tierexport writes ({error}): verify the folder again"
        ) from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ArtifactError(f"can't read {path} ({error.strerror}): tierexport build makes such a folder") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return found
