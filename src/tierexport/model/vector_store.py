"""Token ids and vectors in a folder, as raw arrays that are written batch by batch and mapped into memory."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tierexport.base.memory import read_rows
from tierexport.base.records import Encoded, Floats
from tierexport.metrics.topk import blocks

BLOCK_ROWS = 4096
"""Vectors that are checked together."""

SHARD_TEXTS = 512
"""Texts that are encoded together, sorted by length, and kept once they are done: wherever that is, it is the same."""

FILES = ("lengths", "tokens", "vectors")
"""The arrays of a store."""


class VectorStore:
    """Writes token ids and vectors to a folder.

    The files are raw arrays: `lengths` (int64), `tokens` (int32), `vectors` (float32), and `seconds`, a number in text.
    `formats/gguf/worker.py` writes the same files in its subprocess.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = 0

    def add(self, tokens: Sequence[Sequence[int]], vectors: Floats) -> None:
        """Append some texts' token ids, and their vectors, float32 (texts, dimensions)."""
        self._append("lengths", np.array([len(ids) for ids in tokens], np.int64))
        self._append("tokens", np.array([token for ids in tokens for token in ids], np.int32))
        self._append("vectors", np.ascontiguousarray(vectors, np.float32))
        self.texts += len(tokens)

    def join(self, shards: Iterable[Path]) -> Encoded:
        """Append what lies in other stores' folders, one after the other, and open the files."""
        seconds = 0.0
        for shard in shards:
            for name in FILES:
                with (self.folder / name).open("ab") as whole, (shard / name).open("rb") as part:
                    shutil.copyfileobj(part, whole)
            seconds += float((shard / "seconds").read_text())
        return self.close(seconds)

    def close(self, seconds: float) -> Encoded:
        """Write how long encoding took, and open the files."""
        (self.folder / "seconds").write_text(repr(seconds))
        return open_encoded(self.folder)

    def _append(self, name: str, values: "npt.NDArray[Any]") -> None:
        with (self.folder / name).open("ab") as file:
            file.write(values.tobytes())


def open_encoded(folder: Path) -> Encoded:
    """The files of a VectorStore, mapped into memory."""
    lengths = _mapped(folder / "lengths", np.dtype(np.int64))
    return Encoded(
        lengths=lengths,
        tokens=_mapped(folder / "tokens", np.dtype(np.int32)),
        vectors=_mapped(folder / "vectors", np.dtype(np.float32)).reshape(len(lengths), -1),
        seconds=float((folder / "seconds").read_text()),
    )


def _mapped(path: Path, dtype: "np.dtype[Any]") -> "npt.NDArray[Any]":
    """A file's array; an empty file can't be mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def not_finite(found: Encoded) -> npt.NDArray[np.int64]:
    """Rows of vectors that hold NaN or infinity, int64; read in chunks, for the vectors may be a memory map."""
    chunks = (
        rows.start + np.flatnonzero(~np.isfinite(read_rows(found.vectors, rows)).all(1))
        for rows in blocks(len(found.vectors), BLOCK_ROWS)
    )
    return np.concatenate([np.zeros(0, np.int64), *chunks])
