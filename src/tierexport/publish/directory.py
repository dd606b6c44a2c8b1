"""A folder as a place to publish to: a copy of what would be uploaded, whole or not at all."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tierexport.base.digests import folder_digests
from tierexport.base.errors import MachineError
from tierexport.base.files import clone
from tierexport.base.outputs import is_artifact, making
from tierexport.publish.protocol import Held


class Directory:
    """`dir:PATH`."""

    model, download = ".", None

    def __init__(self, path: Path) -> None:
        self.path = path

    def held(self) -> Held:
        """The folder's files as they are."""
        found = folder_digests(self.path) if self.path.is_dir() else {}
        return Held("", {name: f"sha256:{digest}" for name, digest in found.items()})

    def read(self, path: str, held: Held) -> bytes:  # noqa: ARG002
        """The file's bytes."""
        return (self.path / path).read_bytes()

    def upload(self, files: Mapping[str, Path], removed: Sequence[str], held: Held, message: str) -> str:  # noqa: ARG002
        """Swap in a folder that starts as what is there."""
        with making(self.path, _is_release, "an artifact") as work:
            if self.held() != held:
                raise MachineError(f"{self.path} has changed meanwhile: run again")
            if self.path.exists():
                clone(self.path, work)
            for name in removed:
                (work / name).unlink()
            for name, path in files.items():
                place = work / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)  # it may be a hard link to the folder's own
                shutil.copy2(path, place)
        return str(self.path)


def _is_release(folder: Path) -> bool:
    """Whether a folder is an artifact, or a release of several."""
    return is_artifact(folder) or any(map(is_artifact, folder.glob("proof/*")))
