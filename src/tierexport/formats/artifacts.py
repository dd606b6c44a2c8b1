"""What artifacts lie at a path: those that a manifest lists, or somebody's file or folder, by its format."""

from pathlib import Path

from tierexport.artifact.manifest import MANIFEST, read_manifest
from tierexport.base.errors import ArtifactError
from tierexport.formats import all_formats


def artifacts_at(path: Path) -> tuple[tuple[str, Path], ...]:
    """Format and place of every artifact at a path, none of them opened.

    The path is an artifact of a registered format, or a folder that tierexport built, whose manifest
    says what has to be there. Raises ArtifactError when it is nothing of the kind.
    """
    if (path / MANIFEST).is_file():
        return tuple((each.format, path / each.path) for each in read_manifest(path).artifacts)
    by_name = sorted(all_formats(), key=lambda fmt: not path.name.endswith(fmt.suffix))  # a GGUF may have any name
    for fmt in by_name:
        if fmt.is_at(path):
            return ((fmt.name, path),)
    raise ArtifactError(f"{path} is neither a GGUF file, nor a folder with safetensors, nor an artifact of tierexport")
