"""Texts in a file of this run's own, each read when it is asked for, so that a corpus may be larger than memory."""

import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tierexport.base.files import writing


class StoredTexts(Sequence[str]):
    """A sequence of texts; a slice of it is a tuple. The file is gone once nothing refers to it."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Takes the texts one after the other. Raises MachineError where the disk is full."""
        lengths = array("q")
        with writing(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this lives
            for text in texts:
                lengths.append(self._file.write(text.encode()))
            self._file.flush()
        self._lengths: npt.NDArray[np.int64] = np.asarray(lengths, np.int64)
        self._starts: npt.NDArray[np.int64] = np.cumsum(self._lengths)
        self._starts -= self._lengths

    def chosen(self, rows: npt.NDArray[np.bool_]) -> "StoredTexts":
        """The selected texts, bool (texts,), in the same file."""
        part = object.__new__(StoredTexts)
        part._file, part._lengths, part._starts = self._file, self._lengths[rows], self._starts[rows]
        return part

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[str, ...]: ...
    def __getitem__(self, which: int | slice) -> str | tuple[str, ...]:
        if isinstance(which, slice):
            return tuple(self._read(row) for row in range(*which.indices(len(self))))
        return self._read(range(len(self))[which])

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Sequence) and len(self) == len(other)
        return same and all(one == another for one, another in zip(self, other, strict=True))  # type: ignore[call-overload]

    __hash__: Any = None

    def _read(self, row: int) -> str:
        return os.pread(self._file.fileno(), int(self._lengths[row]), int(self._starts[row])).decode()
