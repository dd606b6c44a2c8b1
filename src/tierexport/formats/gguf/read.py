"""Reads the tensors of a GGUF, anybody's."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tierexport.artifact.stored import StoredTensor
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Tensor
from tierexport.model.roles import role_and_layer


def read_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Every tensor in a GGUF file, anybody's.

    Raises ArtifactError when the file is damaged.
    """
    reader = open_gguf(path)
    found = []
    for entry in reader.tensors:
        shape = tuple(int(size) for size in reversed(entry.shape))
        role, layer = role_and_layer(entry.name, shape)
        found.append(StoredTensor(Tensor(entry.name, role, layer, shape), entry.tensor_type.name, int(entry.n_bytes)))
    return tuple(found)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Gguf's own reader on a file. Raises ArtifactError when it can't be read."""
    try:
        return WholeArrays(path)
    except (ValueError, KeyError, IndexError, OSError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise ArtifactError(f"{path} is not a GGUF file, or is damaged: {error}") from None


class WholeArrays(gguf.GGUFReader):  # type: ignore[misc]  # gguf is not typed
    """Gguf's own reader, which takes an array of numbers as one part.

    It makes a part of each number otherwise: half a million for the vocabulary of XLM-R, and takes seconds for them.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            number = self.gguf_scalar_to_np.get(gguf.GGUFValueType(int(kind[0])))
            if number is not None and count[0]:
                values = self._get(orig_offs + 12, number, int(count[0]))
                if len(values) < count[0]:
                    raise ValueError(f"an array of {count[0]} numbers goes beyond the file")
                return (
                    12 + values.nbytes,
                    [kind, count, values],
                    [2],
                    [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(int(kind[0]))],
                )
        return super()._get_field_parts(orig_offs, raw_type)
