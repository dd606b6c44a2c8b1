"""The files of an artifact folder: their names, and the digests of those that a verification speaks of."""

from pathlib import Path

from tierexport.artifact.manifest import Manifest
from tierexport.artifact.reading import read_object
from tierexport.artifact.verdicts import Verification
from tierexport.base.digests import file_digest, folder_digests
from tierexport.base.errors import ArtifactError

VERIFICATION, RECIPE, CARD, PAGE, IMATRIX = (
    "verify.json", "recipe.toml", "README.md", "report.html", "imatrix.gguf",
)  # fmt: skip
CODEC = "codec.safetensors"
"""How vectors are stored, beside a model that was trained for it or an artifact that was verified with it."""

ENTRANCE = ("modules.json", "config_sentence_transformers.json")
"""What makes `SentenceTransformer(FOLDER)` open the torchao folder inside an artifact folder."""


def proven_files(folder: Path, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file that a verification speaks of, by its path in the artifact folder."""
    found: dict[str, str] = {}
    for each in [artifact.path for artifact in manifest.artifacts] + [RECIPE, IMATRIX, CODEC, *ENTRANCE]:
        path = folder / each
        if path.is_dir():
            found |= {f"{each}/{name}": digest for name, digest in folder_digests(path).items()}
        elif path.is_file():
            found[each] = file_digest(path)
    return found


def read_verification(folder: Path) -> Verification:
    """The verification of a folder that tierexport built. Raises ArtifactError when there is none."""
    found = read_object(folder / VERIFICATION)
    try:
        return Verification.from_json(found)
    except ValueError as error:
        raise ArtifactError(
            f"{folder / VERIFICATION} is not what this version of tierexport writes ({error}): verify the folder again"
        ) from None
