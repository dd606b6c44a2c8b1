"""What `inspect` finds in an artifact, anybody's, and what every format's inspection needs for it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tierexport.artifact.stored import StoredTensor
from tierexport.base.listing import Listing
from tierexport.base.records import bits_per_parameter
from tierexport.formats.header import Header, Omitted, Room

HeaderReader = Callable[[BinaryIO, int, str, Room], Header]
"""Reads a header from a file that is open at its start, of so many bytes, called so in errors, as far as there is room."""


@dataclass(frozen=True)
class Inspection:
    """One artifact: a GGUF (all parts of it), or one folder's safetensors.

    `path` is a local path, or ORG/NAME@REVISION:PATH on a hub; `bytes` those of the whole weight files.
    """

    path: str
    format: str
    bytes: int
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything found, as `inspect --json` prints it."""
        return {
            "path": self.path,
            "format": self.format,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "stored_bits": self.stored_bits,
            "metadata": {key: _plain(value) for key, value in self.metadata.items()},
            "warnings": list(self.warnings),
            "tensors": [each.as_json() for each in self.tensors],
        }

    @property
    def parameters(self) -> int:
        """Values of all tensors."""
        return sum(each.tensor.parameters for each in self.tensors)

    @property
    def stored_bits(self) -> float:
        """Bits per parameter of the whole file."""
        return bits_per_parameter(self.bytes, self.parameters)


def _plain(value: Any) -> Any:
    """A metadata value as JSON can hold it, which knows neither infinities nor arrays that were not kept."""
    if isinstance(value, Omitted):
        return {"type": value.type, "length": value.length}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def read_headers(listing: Listing, names: Sequence[str], reader: HeaderReader, room: Room) -> dict[str, Header]:
    """The headers of some files of a listing. Raises ArtifactError when one is damaged, MachineError from a hub."""
    headers = {}
    for name in names:
        file = listing.files[name]
        with file.open() as opened:
            headers[name] = reader(opened, file.size, file.where, room)
    return headers


def whole_bytes(listing: Listing, names: Sequence[str]) -> int:
    """Bytes of some files of a listing."""
    return sum(listing.files[name].size for name in names)


def table_warnings(tensors: Sequence[StoredTensor]) -> Iterator[str]:
    """Warns of a token table that is not quantized and takes most of the bytes."""
    table = next((each for each in tensors if each.tensor.role == "token_embeddings"), None)
    if table and table.unquantized and table.bytes > sum(each.bytes for each in tensors) / 2:
        yield f"the token table at {table.type} takes more than half of the bytes"
