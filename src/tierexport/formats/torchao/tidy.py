"""Makes a saved folder the same from build to build, and drops paths of this machine."""

import json
import re
from pathlib import Path
from typing import Any

_LOCAL_FILE = re.compile(r"~?/[^/]+/|[A-Za-z]:[\\/]|\.\.?/|file:")
"""How the path of a file of one machine begins."""


def tidy(folder: Path) -> None:
    """Make a saved folder the same from build to build, and readable for everybody."""
    for file in folder.rglob("*"):
        if file.suffix == ".safetensors":
            _sort_metadata(file)
        elif file.suffix == ".json":
            _drop_places(file)
        file.chmod(0o755 if file.is_dir() else 0o644)


def state_dtype(folder: Path, dtype: str) -> None:
    """Have readers compute in `dtype`: transformers states that of the first tensor it meets."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _drop_places(path: Path) -> None:
    """Leave out where the source's files, or those it was made of, lay on somebody's disk: "name_or_path", "vocab_file"."""
    document = json.loads(path.read_text("utf-8"))
    kept = _without_places(document)
    if kept != document:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _without_places(document: Any, inside: bool = False) -> Any:
    """The same where it is a table; inside its tables anything may be text but for "name_or_path"."""
    if not isinstance(document, dict):
        return document
    return {
        key: _without_places(value, True)
        for key, value in document.items()
        if not (isinstance(value, str) and _LOCAL_FILE.match(value) and (not inside or "name_or_path" in key))
    }


def _sort_metadata(file: Path) -> None:
    """Put a safetensors header's metadata in order: the library writes it in that of a hash map.

    Without this, two builds of the same inputs would differ.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) > length:
            raise RuntimeError(f"{file}: the ordered header is longer than the one that was written")
        opened.seek(8)
        opened.write(ordered.ljust(length))
