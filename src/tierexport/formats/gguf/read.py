"""Reads the tensors of a GGUF, anybody's."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tierexport.artifact.stored import StoredTensor
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Tensor
from tierexport.model.roles import role_and_layer

_LENGTH = 8
"""Bytes of a string's length."""


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
    """Gguf's own reader, which takes an array of numbers as one part, and of an array of strings their bytes alone.

    It makes a part of each number otherwise, and two of each string: a million for the vocabulary of XLM-R, and takes half a
    minute for them.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY and self.byte_order == "I":
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            element = gguf.GGUFValueType(int(kind[0]))
            number = self.gguf_scalar_to_np.get(element)
            types = [gguf.GGUFValueType.ARRAY, element]
            if number is not None and count[0]:
                values = self._get(orig_offs + 12, number, int(count[0]))
                if len(values) < count[0]:
                    raise ValueError(f"an array of {count[0]} numbers goes beyond the file")
                return 12 + values.nbytes, [kind, count, values], [2], types
            if element == gguf.GGUFValueType.STRING and count[0]:
                end, strings = self._strings(orig_offs + 12, int(count[0]))
                return end - orig_offs, [kind, count, *strings], range(2, 2 + len(strings)), types
        return super()._get_field_parts(orig_offs, raw_type)

    def _strings(self, start: int, count: int) -> tuple[int, list[memoryview]]:
        """Where an array of strings ends, and their bytes."""
        whole, found = memoryview(self.data), []
        for _ in range(count):
            begin = start + _LENGTH
            start = begin + int.from_bytes(whole[start:begin], "little")
            if start > len(whole):
                raise ValueError(f"an array of {count} strings goes beyond the file")
            found.append(whole[begin:start])
        return start, found
