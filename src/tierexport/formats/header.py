"""What the headers of all formats have in common: a strict reading position in a file, and limits on what is kept.

A header is believed in nothing. Counts and lengths are held against the bytes that are left before
anything is allocated, and what is kept of all headers together is bounded by a `Room`.
"""

import itertools
import reprlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from tierexport.base.errors import ArtifactError

MOST_VALUES = 1 << 60
"""The most values of a tensor: beyond it, sizes in bits would not fit into 64 of them."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = 80
shown = _REPR.repr
"""A name or value out of a file, for a message: short, and with nothing in it that a terminal would obey."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """A value that is too long to keep: the name of its GGUF type (of its elements), and how many elements or bytes."""

    type: str
    length: int


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """A tensor as a header lists it: `shape` in torch's order, the format's name of its type, `offset` from the start of the
    file in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, its tensors in the order in which it lists them."""

    metadata: Mapping[str, Any]
    tensors: tuple[HeaderEntry, ...]


@dataclass
class Room:
    """What may still be kept of headers, of however many files: tensors, and bytes of names and metadata."""

    tensors: int = 1 << 15
    bytes: int = 1 << 22


@dataclass
class Cursor:
    """Reads on through a file of `size` bytes, of which the first `limit` may be its header; errors call it `name`."""

    file: BinaryIO
    size: int
    limit: int
    name: str
    room: Room
    position: int = 0

    def wrong(self, what: str, remedy: str = "It is damaged, or no such file at all: get it again") -> ArtifactError:
        """The error that says what is wrong with the file, and what to do."""
        return ArtifactError(f"{self.name}: {what}. {remedy}")

    def claim(self, size: int, what: str) -> None:
        """Raises ArtifactError unless `size` more bytes are there, and within the limit on headers."""
        left = self.size - self.position
        if size > left:
            raise self.wrong(f"{what} takes {size:,} bytes, and {left:,} are left: {size - left:,} are missing")
        if self.position + size > self.limit:
            raise self.wrong(f"{what} ends beyond the first {self.limit:,} bytes, which a header may take")

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes. Raises ArtifactError when they are not there."""
        self.claim(size, what)
        found = self.file.read(size)
        if len(found) != size:
            raise self.wrong(f"{what} can't be read, since it is no longer {self.size:,} bytes long")
        self.position += size
        return found

    def skip(self, size: int, what: str) -> None:
        """Pass over `size` bytes without reading them. Raises ArtifactError when they are not there."""
        self.claim(size, what)
        self.file.seek(size, 1)
        self.position += size

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over `count` strings, each behind its length; a vocabulary has hundreds of thousands."""
        read, seek, end = self.file.read, self.file.seek, min(self.size, self.limit)
        for _ in range(count):
            size = 8 + int.from_bytes(read(8), "little")
            if self.position + size > end:
                self.claim(size, what)
            self.position += size
            seek(size - 8, 1)

    def numbers(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        """The next numbers, as a struct has them. Raises ArtifactError when they are not there."""
        return form.unpack(self.take(form.size, what))

    def keep(self, what: str, size: int = 0, tensors: int = 0) -> None:
        """Raises ArtifactError when there is no room for `size` bytes and `tensors` tensors more."""
        self.room.bytes -= size
        self.room.tensors -= tensors
        if self.room.bytes < 0 or self.room.tensors < 0:
            most = f"{Room.tensors:,} tensors and {Room.bytes:,} bytes of names and metadata are the most that is shown"
            raise self.wrong(f"{what} is too much: {most}", "Name one of several files, or get a sane one")

    def text(self, size: int, what: str) -> str:
        """The next `size` bytes, kept as text. Raises ArtifactError when they are not UTF-8."""
        self.keep(what, size)
        try:
            return self.take(size, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"{what} is not UTF-8 ({error.reason} at its byte {error.start})") from None


def checked_layout(cursor: Cursor, tensors: Iterable[HeaderEntry]) -> list[HeaderEntry]:
    """The tensors in the order in which they lie. Raises ArtifactError when two share bytes, or the file ends before them."""
    lying = sorted(tensors, key=lambda each: (each.offset, each.bytes))
    for before, after in itertools.pairwise(lying):
        if (end := before.offset + before.bytes) > after.offset:
            shared = f"tensors {shown(before.name)} and {shown(after.name)} share bytes"
            raise cursor.wrong(f"{shared}, one up to byte {end:,} and one from {after.offset:,} on")
    if lying and (missing := lying[-1].offset + lying[-1].bytes - cursor.size) > 0:
        last = f"tensor {shown(lying[-1].name)} ends at byte {cursor.size + missing:,}"
        raise cursor.wrong(f"{last}, and the file has {cursor.size:,}: {missing:,} are missing", "Get it again, whole")
    return lying
