"""The headers of GGUF and safetensors files, anybody's: read strictly, in little memory, never a weight.

A header is believed in nothing. Counts and lengths are held against the bytes that are left before
anything is allocated, and what is kept of all headers together is bounded by a `Room`. Formats:
ggml's docs/gguf.md, and the README of huggingface/safetensors.
"""

import codecs
import itertools
import json
import math
import re
import reprlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import gguf

from tierexport.base.errors import ArtifactError

GGUF_HEADER_BYTES, SAFETENSORS_HEADER_BYTES = 1 << 26, 100_000_000
"""The most a header may take: four times the largest vocabulary with its merges; the format's own limit."""

KEY_BYTES, STRING_BYTES, NAME_BYTES = 1 << 16, 1 << 16, 1 << 10
"""The longest key; the longest string that is kept of a GGUF; the longest tensor name of a safetensors file."""

GGUF_NAME_BYTES, GGUF_DIMENSIONS = 64, 4
"""The format's limits on a tensor."""

KEPT_ELEMENTS, NESTED_ARRAYS = 256, 4
"""The longest array that is kept, and how deep arrays may lie in arrays."""

METADATA_CHARACTERS, ENTRY_CHARACTERS = 1 << 20, 1 << 12
"""The longest value of a safetensors file's metadata, and the longest entry of a tensor, as JSON has them."""

MOST_VALUES = 1 << 60
"""The most values of a tensor: beyond it, sizes in bits would not fit into 64 of them."""

_CHUNK = 1 << 16

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = 80
_shown = _REPR.repr
"""A name or value out of a file, for a message: short, and with nothing in it that a terminal would obey."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """A value that is too long to keep: the name of its GGUF type (of its elements), and how many elements or bytes."""

    type: str
    length: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file holds it: `shape` in torch's order, the format's name of its type, `offset` from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, its tensors in the order in which it lists them."""

    metadata: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]


@dataclass
class Room:
    """What may still be kept of headers, of however many files: tensors, and bytes of names and metadata."""

    tensors: int = 1 << 15
    bytes: int = 1 << 22


@dataclass
class _Cursor:
    """Reads on through a file of `size` bytes, of which the first `limit` may be its header."""

    file: BinaryIO
    size: int
    limit: int
    name: str
    room: Room
    position: int = 0

    def wrong(self, what: str, remedy: str = "It is damaged, or no such file at all: get it again") -> ArtifactError:
        return ArtifactError(f"{self.name}: {what}. {remedy}")

    def claim(self, size: int, what: str) -> None:
        """Raises ArtifactError unless `size` more bytes are there, and within the limit on headers."""
        left = self.size - self.position
        if size > left:
            raise self.wrong(f"{what} takes {size:,} bytes, and {left:,} are left: {size - left:,} are missing")
        if self.position + size > self.limit:
            raise self.wrong(f"{what} ends beyond the first {self.limit:,} bytes, which a header may take")

    def take(self, size: int, what: str) -> bytes:
        self.claim(size, what)
        found = self.file.read(size)
        if len(found) != size:
            raise self.wrong(f"{what} can't be read, since it is no longer {self.size:,} bytes long")
        self.position += size
        return found

    def skip(self, size: int, what: str) -> None:
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


# --- GGUF

_COUNT, _COUNTS, _KIND, _ARRAY = (struct.Struct(form) for form in ("<Q", "<QQ", "<I", "<IQ"))
_STRING_TYPE, _ARRAY_TYPE, _BOOL_TYPE = (int(gguf.GGUFValueType[name]) for name in ("STRING", "ARRAY", "BOOL"))
_FORMS = {"UINT8": "B", "INT8": "b", "UINT16": "H", "INT16": "h", "UINT32": "I", "INT32": "i", "FLOAT32": "f",
          "BOOL": "B", "UINT64": "Q", "INT64": "q", "FLOAT64": "d"}  # fmt: skip
_SCALARS = {int(gguf.GGUFValueType[name]): struct.Struct(f"<{form}") for name, form in _FORMS.items()}
_LEAST = {kind: form.size for kind, form in _SCALARS.items()} | {_STRING_TYPE: _COUNT.size, _ARRAY_TYPE: _ARRAY.size}
"""The least bytes that one value of a type takes."""

_BLOCKS = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
"""Name, values per block and bytes per block of ggml's types."""


def read_gguf(file: BinaryIO, size: int, name: str, room: Room | None = None) -> Header:
    """The header of a GGUF file, version 2 or 3, little-endian.

    `file` stands at its start and has `size` bytes; `name` is what errors call it. Of arrays longer than
    KEPT_ELEMENTS and strings longer than STRING_BYTES only type and length are kept. Raises ArtifactError
    when the file is anything that llama.cpp should not be given.
    """
    cursor = _Cursor(file, size, GGUF_HEADER_BYTES, name, room or Room())
    _check_version(cursor)
    tensor_count, key_count = cursor.numbers(_COUNTS, "its count of tensors and keys")
    for what, count, least in (("tensors", tensor_count, 8 + 4 + 4 + 8), ("keys", key_count, 8 + 1 + 4 + 1)):
        if count * least > size - cursor.position:  # each has lengths and types, if nothing else
            left = f"the {size - cursor.position:,} bytes that are left can't hold so many"
            raise cursor.wrong(f"it says that it has {count:,} {what}, and {left}")
    cursor.keep(f"its {tensor_count:,} tensors", tensors=tensor_count)
    metadata: dict[str, Any] = {}
    for number in range(key_count):
        key = _name(cursor, f"the name of key {number + 1} of {key_count}", 1, KEY_BYTES)
        if key in metadata:
            raise cursor.wrong(f"it has the key {_shown(key)} twice")
        (kind,) = cursor.numbers(_KIND, f"the type of {_shown(key)}")
        metadata[key] = _value(cursor, kind, _shown(key))
    entries = [_entry(cursor, f"tensor {number + 1} of {tensor_count}") for number in range(tensor_count)]
    return Header(metadata, _placed(cursor, entries, metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)))


def _check_version(cursor: _Cursor) -> None:
    magic = cursor.take(4, "the mark of a GGUF file")
    if magic != b"GGUF":
        raise cursor.wrong(f"it begins with {magic!r}, not with b'GGUF'", "Name a GGUF file, or one called *.safetensors")
    (version,) = cursor.numbers(_KIND, "its version")
    if version & 0xFFFF == 0 and version:
        raise cursor.wrong("it is a big-endian GGUF, which is not read here", "Convert it with gguf_convert_endian of gguf-py")
    if version not in (2, 3):
        raise cursor.wrong(f"it is a GGUF of version {version}, and 2 and 3 are read", "Convert the model again")


def _name(cursor: _Cursor, what: str, least: int, most: int) -> str:
    (size,) = cursor.numbers(_COUNT, what)
    if not least <= size <= most:
        raise cursor.wrong(f"{what} has {size:,} bytes, and {least} to {most:,} are allowed")
    cursor.keep(what, 100)  # what Python needs beside the characters
    return cursor.text(size, what)


def _value(cursor: _Cursor, kind: int, what: str, depth: int = 0) -> Any:
    if kind == _ARRAY_TYPE:
        return _array(cursor, what, depth + 1)
    if kind == _STRING_TYPE:
        (size,) = cursor.numbers(_COUNT, what)
        if size <= STRING_BYTES:
            return cursor.text(size, what)
        cursor.skip(size, what)
        return Omitted("STRING", size)
    if kind not in _SCALARS:
        raise cursor.wrong(f"{what} has type {kind}, and GGUF's types are 0 to {max(_LEAST)}")
    (value,) = cursor.numbers(_SCALARS[kind], what)
    if kind == _BOOL_TYPE:
        if value > 1:
            raise cursor.wrong(f"{what} is a truth value of {value}, and 0 and 1 are allowed")
        return bool(value)
    return value


def _array(cursor: _Cursor, what: str, depth: int) -> list[Any] | Omitted:
    kind, count = cursor.numbers(_ARRAY, what)
    if kind not in _LEAST:
        raise cursor.wrong(f"{what} is an array of type {kind}, and GGUF's types are 0 to {max(_LEAST)}")
    if depth > NESTED_ARRAYS:
        raise cursor.wrong(f"{what} has arrays in arrays beyond a depth of {NESTED_ARRAYS}")
    cursor.claim(count * _LEAST[kind], f"{what}, an array of {count:,} elements,")
    cursor.keep(what, 32 * (1 + count if count <= KEPT_ELEMENTS else 1))  # what Python needs for a list
    if count <= KEPT_ELEMENTS:
        return [_value(cursor, kind, what, depth) for _ in range(count)]
    if kind in _SCALARS:
        cursor.skip(count * _LEAST[kind], what)
    elif kind == _STRING_TYPE:
        cursor.skip_strings(count, what)
    else:
        for _ in range(count):
            _array(cursor, what, depth + 1)
    return Omitted(gguf.GGUFValueType(kind).name, count)


def _entry(cursor: _Cursor, what: str) -> StoredTensor:
    """The next tensor's entry, its offset still from the start of the data."""
    name = _name(cursor, f"the name of {what}", 0, GGUF_NAME_BYTES)
    what = f"tensor {_shown(name)}"
    (dimensions,) = cursor.numbers(_KIND, f"the shape of {what}")
    if dimensions > GGUF_DIMENSIONS:
        raise cursor.wrong(f"{what} has {dimensions} dimensions, and at most {GGUF_DIMENSIONS} are allowed")
    shape = tuple(reversed(cursor.numbers(struct.Struct(f"<{dimensions}Q"), f"the shape of {what}")))
    kind, offset = cursor.numbers(_ARRAY, f"the type of {what}")
    if kind not in _BLOCKS:
        raise cursor.wrong(f"{what} has ggml's type {kind}, which the installed gguf doesn't know", "Update gguf")
    native, block, block_bytes = _BLOCKS[kind]
    if 0 in shape or math.prod(shape) > MOST_VALUES:
        raise cursor.wrong(f"{what} has the shape {shape}, and sizes are 1 or more, {MOST_VALUES:,} values at most")
    if (columns := shape[-1] if shape else 1) % block:
        raise cursor.wrong(f"{what} is {native}, whose blocks hold {block} values, and has rows of {columns:,}")
    return StoredTensor(name, shape, native, offset, math.prod(shape) // block * block_bytes)


def _placed(cursor: _Cursor, entries: Sequence[StoredTensor], alignment: Any) -> tuple[StoredTensor, ...]:
    """The tensors with offsets from the file's start. Raises ArtifactError when they can't lie there."""
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.wrong(f"general.alignment is {_shown(alignment)}, and has to be a power of two")
    start = -(-cursor.position // alignment) * alignment
    names: set[str] = set()
    for each in entries:
        if each.name in names:
            raise cursor.wrong(f"it has the tensor {_shown(each.name)} twice")
        names.add(each.name)
        if each.offset % alignment:
            where = f"tensor {_shown(each.name)} lies at byte {each.offset:,} of the data"
            raise cursor.wrong(f"{where}, which is no multiple of general.alignment, {alignment:,}")
    placed = tuple(replace(each, offset=start + each.offset) for each in entries)
    _laid_out(cursor, placed)
    return placed


def _laid_out(cursor: _Cursor, tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """The tensors in the order in which they lie. Raises ArtifactError when two share bytes, or the file ends before them."""
    lying = sorted(tensors, key=lambda each: (each.offset, each.bytes))
    for before, after in itertools.pairwise(lying):
        if (end := before.offset + before.bytes) > after.offset:
            shared = f"tensors {_shown(before.name)} and {_shown(after.name)} share bytes"
            raise cursor.wrong(f"{shared}, one up to byte {end:,} and one from {after.offset:,} on")
    if lying and (missing := lying[-1].offset + lying[-1].bytes - cursor.size) > 0:
        last = f"tensor {_shown(lying[-1].name)} ends at byte {cursor.size + missing:,}"
        raise cursor.wrong(f"{last}, and the file has {cursor.size:,}: {missing:,} are missing", "Get it again, whole")
    return lying


# --- safetensors

_DTYPE_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def read_safetensors(file: BinaryIO, size: int, name: str, room: Room | None = None) -> Header:
    """The header of a safetensors file; its metadata are the strings of `__metadata__`.

    `file` stands at its start and has `size` bytes; `name` is what errors call it. The JSON is read entry
    by entry, so that memory does not follow its length. Raises ArtifactError when the file breaks a rule
    of the format: tensors fill the file from end to end, no byte is shared or left over.
    """
    cursor = _Cursor(file, size, 8 + SAFETENSORS_HEADER_BYTES, name, room or Room())
    (length,) = cursor.numbers(_COUNT, "the length of its header")
    cursor.claim(length, "the header")
    text = _Json(cursor, length)
    metadata: dict[str, str] | None = None
    tensors: dict[str, StoredTensor] = {}
    for key in text.keys("the header"):
        if key in tensors or (key == "__metadata__" and metadata is not None):
            raise cursor.wrong(f"its header has {_shown(key)} twice")
        if key == "__metadata__":
            metadata = _metadata(cursor, text)
        else:
            cursor.keep(f"tensor {_shown(key)}", tensors=1)
            tensors[key] = _described(cursor, key, text.value(ENTRY_CHARACTERS, f"tensor {_shown(key)}"), 8 + length)
    text.finish()
    end = 8 + length
    for each in _laid_out(cursor, tensors.values()):
        if each.offset != end:
            raise cursor.wrong(f"{each.offset - end:,} bytes before tensor {_shown(each.name)} belong to none")
        end += each.bytes
    if end != size:
        raise cursor.wrong(f"{size - end:,} bytes after its last tensor belong to none")
    return Header(metadata or {}, tuple(tensors.values()))


def _metadata(cursor: _Cursor, text: "_Json") -> dict[str, str]:
    found: dict[str, str] = {}
    for key in text.keys("__metadata__"):
        value = text.value(METADATA_CHARACTERS, f"__metadata__, {_shown(key)},")
        if key in found or not isinstance(value, str):
            problem = "is there twice" if key in found else f"is {_shown(value)} and has to be a string"
            raise cursor.wrong(f"__metadata__, {_shown(key)}, {problem}")
        cursor.keep("__metadata__", len(value))
        found[key] = value
    return found


def _described(cursor: _Cursor, name: str, entry: Any, start: int) -> StoredTensor:
    what = f"tensor {_shown(name)}"
    if not isinstance(entry, tuple) or sorted(key for key, _ in entry) != ["data_offsets", "dtype", "shape"]:
        raise cursor.wrong(f"{what} is {_shown(entry)}, and has to have dtype, shape and data_offsets, each once")
    offsets, dtype, shape = (value for _, value in sorted(entry))
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise cursor.wrong(f"{what} has the dtype {_shown(dtype)}, which is none of {', '.join(_DTYPE_BITS)}")
    if not _are_sizes(shape) or math.prod(max(each, 1) for each in shape) > MOST_VALUES:
        raise cursor.wrong(f"{what} has the shape {_shown(shape)}, and has to have sizes, {MOST_VALUES:,} values at most")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise cursor.wrong(f"{what} has the data_offsets {_shown(offsets)}, and they are begin and end")
    bits, given = math.prod(shape) * _DTYPE_BITS[dtype], 8 * (offsets[1] - offsets[0])
    if bits != given:
        raise cursor.wrong(f"{what}, {dtype} of shape {_shown(shape)}, takes {bits:,} bits, and is given {given:,}")
    return StoredTensor(name, tuple(shape), dtype, start + offsets[0], bits // 8)


def _are_sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(each) is int and 0 <= each < 1 << 63 for each in found)


_MARK = re.compile(r"[^ \t\r\n]")


class _Json:
    """The next `left` bytes of a file as JSON, in pieces that are parsed one by one and let go."""

    def __init__(self, cursor: _Cursor, left: int) -> None:
        self.cursor, self.left = cursor, left
        self.text, self.at = "", 0
        self.utf8 = codecs.getincrementaldecoder("utf-8")()
        self.json = json.JSONDecoder(object_pairs_hook=tuple)

    def keys(self, what: str) -> Iterable[str]:
        """The keys of the object that comes next; the caller takes the value after each."""
        self._expect("{", what)
        more = self._next() != "}"
        while more:
            key = self.value(8 * NAME_BYTES, f"a name in {what}")
            if not isinstance(key, str) or len(key) > NAME_BYTES:
                raise self.cursor.wrong(f"{what} has the name {_shown(key)}, and {NAME_BYTES} characters are allowed")
            self.cursor.keep(what, len(key))
            self._expect(":", what)
            yield key
            if more := self._next() == ",":
                self.at += 1
        self._expect("}", what)

    def value(self, limit: int, what: str) -> Any:
        """The value that comes next, an object as its pairs; it takes at most `limit` characters."""
        self._next()
        window = min(limit, ENTRY_CHARACTERS)
        while True:
            self._fill(window)
            try:
                found, end = self.json.raw_decode(self.text[self.at : self.at + window])
                if isinstance(found, str):
                    found.encode()  # JSON can hold half of a surrogate pair, and nothing can print it
            except (ValueError, RecursionError) as error:
                if window >= min(limit, len(self.text) - self.at):
                    longer = f"is not JSON, or takes more than {limit:,} characters"
                    raise self.cursor.wrong(f"{what} {longer} ({type(error).__name__}: {error})") from None
                window = min(8 * window, limit)
            else:
                self.at += end
                return found

    def finish(self) -> None:
        """Raises ArtifactError unless nothing is left but space."""
        if self._next():
            raise self.cursor.wrong(f"its header goes on with {_shown(self._next())} after its end")

    def _expect(self, mark: str, what: str) -> None:
        if (found := self._next()) != mark:
            raise self.cursor.wrong(f"{what} has {_shown(found)} where the format's JSON has {mark!r}")
        self.at += 1

    def _next(self) -> str:
        """The next character that is no space, and stays; empty at the end."""
        while not (found := _MARK.search(self.text, self.at)):
            self.at = len(self.text)
            if not self.left:
                return ""
            self._fill(1)
        self.at = found.start()
        return found[0]

    def _fill(self, characters: int) -> None:
        """Read on until so many characters are there, or the header ends."""
        while len(self.text) - self.at < characters and self.left:
            raw = self.cursor.take(min(self.left, _CHUNK), "the header")
            self.left -= len(raw)
            try:
                self.text = self.text[self.at :] + self.utf8.decode(raw, final=not self.left)
            except UnicodeDecodeError as error:
                raise self.cursor.wrong(f"its header is not UTF-8 ({error.reason})") from None
            self.at = 0
