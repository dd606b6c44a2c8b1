"""safetensors files, written part by part, so that what they hold need not be in memory at once.

A file is the length of its header in eight bytes, the header, JSON that spaces fill up to a multiple of eight bytes, and the
arrays. The order is that of the safetensors library: by the size of their numbers, which aligns them, then by name.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tierexport.base.files import replacing

Array: TypeAlias = npt.NDArray[Any]

TYPES = {"float32": "F32", "uint8": "U8"}
"""What is written, by numpy's name, and what the format calls it."""


@dataclass(frozen=True)
class Parts:
    """An array of which `rows` gives some rows at a time, in their order, together of this shape and type."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    rows: Iterable[Array]


def write_tensors(path: Path, tensors: Mapping[str, Array | Parts], key: str, text: str) -> None:
    """Arrays by name, and a text under a key of the metadata, whole or not at all: to the byte as the library saves them."""
    ordered = sorted(tensors.items(), key=lambda named: (-named[1].dtype.itemsize, named[0]))
    with replacing(path) as file:
        file.write(_header(ordered, {key: text}))
        for _, tensor in ordered:
            for part in tensor.rows if isinstance(tensor, Parts) else (tensor,):
                file.write(np.ascontiguousarray(part).data)


def _header(ordered: Sequence[tuple[str, Array | Parts]], metadata: Mapping[str, str]) -> bytes:
    """The file up to its first array."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        first, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {"dtype": TYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded
