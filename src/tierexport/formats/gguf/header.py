"""The header of a GGUF file, anybody's: read strictly, in little memory, never a weight. Format: ggml's docs/gguf.md."""

import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import gguf

from tierexport.formats.header import MOST_VALUES, Cursor, Header, HeaderEntry, Omitted, Room, checked_layout, shown

MOST_HEADER_BYTES = 1 << 26
"""The most a header may take: four times the largest vocabulary with its merges."""

KEY_BYTES = STRING_BYTES = 1 << 16
"""The longest key; the longest string that is kept."""

NAME_BYTES, MOST_DIMENSIONS = 64, 4
"""The format's limits on a tensor."""

KEPT_ELEMENTS, NESTED_ARRAYS = 256, 4
"""The longest array that is kept, and how deep arrays may lie in arrays."""

_COUNT, _COUNTS, _KIND, _ARRAY = (struct.Struct(form) for form in ("<Q", "<QQ", "<I", "<IQ"))
_STRING_TYPE, _ARRAY_TYPE, _BOOL_TYPE = (int(gguf.GGUFValueType[name]) for name in ("STRING", "ARRAY", "BOOL"))
_FORMS = {"UINT8": "B", "INT8": "b", "UINT16": "H", "INT16": "h", "UINT32": "I", "INT32": "i", "FLOAT32": "f",
          "BOOL": "B", "UINT64": "Q", "INT64": "q", "FLOAT64": "d"}  # fmt: skip
_SCALARS = {int(gguf.GGUFValueType[name]): struct.Struct(f"<{form}") for name, form in _FORMS.items()}
_LEAST = {kind: form.size for kind, form in _SCALARS.items()} | {_STRING_TYPE: _COUNT.size, _ARRAY_TYPE: _ARRAY.size}
"""The least bytes that one value of a type takes."""

_BLOCKS: dict[int, tuple[str, int, int]] = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
"""Name, values per block and bytes per block of ggml's types."""


def read_gguf_header(file: BinaryIO, size: int, name: str, room: Room | None = None) -> Header:
    """The header of a GGUF file, version 2 or 3, little-endian.

    `file` stands at its start and has `size` bytes; `name` is what errors call it. Of arrays longer than
    KEPT_ELEMENTS and strings longer than STRING_BYTES only type and length are kept. Raises ArtifactError
    when the file is anything that llama.cpp should not be given.
    """
    cursor = Cursor(file, size, MOST_HEADER_BYTES, name, room or Room())
    _check_version(cursor)
    tensor_count, key_count = _counts(cursor)
    metadata = _metadata(cursor, key_count)
    entries = [_entry(cursor, f"tensor {number + 1} of {tensor_count}") for number in range(tensor_count)]
    alignment = _checked_alignment(cursor, metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT))
    return Header(metadata, _placed(cursor, entries, alignment))


def _check_version(cursor: Cursor) -> None:
    magic = cursor.take(4, "the mark of a GGUF file")
    if magic != b"GGUF":
        raise cursor.wrong(f"it begins with {magic!r}, not with b'GGUF'", "Name a GGUF file, or one called *.safetensors")
    (version,) = cursor.numbers(_KIND, "its version")
    if version & 0xFFFF == 0 and version:
        raise cursor.wrong("it is a big-endian GGUF, which is not read here", "Convert it with gguf_convert_endian of gguf-py")
    if version not in (2, 3):
        raise cursor.wrong(f"it is a GGUF of version {version}, and 2 and 3 are read", "Convert the model again")


def _counts(cursor: Cursor) -> tuple[int, int]:
    """How many tensors and keys follow. Raises ArtifactError when the bytes that are left can't hold so many."""
    tensor_count, key_count = cursor.numbers(_COUNTS, "its count of tensors and keys")
    for what, count, least in (("tensors", tensor_count, 8 + 4 + 4 + 8), ("keys", key_count, 8 + 1 + 4 + 1)):
        if count * least > cursor.size - cursor.position:  # each has lengths and types, if nothing else
            left = f"the {cursor.size - cursor.position:,} bytes that are left can't hold so many"
            raise cursor.wrong(f"it says that it has {count:,} {what}, and {left}")
    cursor.keep(f"its {tensor_count:,} tensors", tensors=tensor_count)
    return tensor_count, key_count


# --- keys and values


def _metadata(cursor: Cursor, key_count: int) -> dict[str, Any]:
    """The keys with their values. Raises ArtifactError for a key that is there twice."""
    metadata: dict[str, Any] = {}
    for number in range(key_count):
        key = _name(cursor, f"the name of key {number + 1} of {key_count}", 1, KEY_BYTES)
        if key in metadata:
            raise cursor.wrong(f"it has the key {shown(key)} twice")
        (kind,) = cursor.numbers(_KIND, f"the type of {shown(key)}")
        metadata[key] = _value(cursor, kind, shown(key))
    return metadata


def _name(cursor: Cursor, what: str, least: int, most: int) -> str:
    (size,) = cursor.numbers(_COUNT, what)
    if not least <= size <= most:
        raise cursor.wrong(f"{what} has {size:,} bytes, and {least} to {most:,} are allowed")
    cursor.keep(what, 100)  # what Python needs beside the characters
    return cursor.text(size, what)


def _value(cursor: Cursor, kind: int, what: str, depth: int = 0) -> Any:
    """The value of a type that comes next; `depth`: in how many arrays it lies."""
    if kind == _ARRAY_TYPE:
        return _array(cursor, what, depth + 1)
    if kind == _STRING_TYPE:
        return _string(cursor, what)
    if kind not in _SCALARS:
        raise cursor.wrong(f"{what} has type {kind}, and GGUF's types are 0 to {max(_LEAST)}")
    (value,) = cursor.numbers(_SCALARS[kind], what)
    if kind != _BOOL_TYPE:
        return value
    if value > 1:
        raise cursor.wrong(f"{what} is a truth value of {value}, and 0 and 1 are allowed")
    return bool(value)


def _string(cursor: Cursor, what: str) -> str | Omitted:
    (size,) = cursor.numbers(_COUNT, what)
    if size <= STRING_BYTES:
        return cursor.text(size, what)
    cursor.skip(size, what)
    return Omitted("STRING", size)


def _array(cursor: Cursor, what: str, depth: int) -> list[Any] | Omitted:
    """The array that comes next, kept when it is short; `depth`: how many arrays it lies in, itself counted."""
    kind, count = cursor.numbers(_ARRAY, what)
    if kind not in _LEAST:
        raise cursor.wrong(f"{what} is an array of type {kind}, and GGUF's types are 0 to {max(_LEAST)}")
    if depth > NESTED_ARRAYS:
        raise cursor.wrong(f"{what} has arrays in arrays beyond a depth of {NESTED_ARRAYS}")
    cursor.claim(count * _LEAST[kind], f"{what}, an array of {count:,} elements,")
    cursor.keep(what, 32 * (1 + count if count <= KEPT_ELEMENTS else 1))  # what Python needs for a list
    if count <= KEPT_ELEMENTS:
        return [_value(cursor, kind, what, depth) for _ in range(count)]
    _skip_elements(cursor, kind, count, what, depth)
    return Omitted(gguf.GGUFValueType(kind).name, count)


def _skip_elements(cursor: Cursor, kind: int, count: int, what: str, depth: int) -> None:
    """Pass over the elements of a long array."""
    if kind in _SCALARS:
        cursor.skip(count * _LEAST[kind], what)
    elif kind == _STRING_TYPE:
        cursor.skip_strings(count, what)
    else:
        for _ in range(count):
            _array(cursor, what, depth + 1)


# --- tensors


def _entry(cursor: Cursor, what: str) -> HeaderEntry:
    """The next tensor's entry, its offset still from the start of the data."""
    name = _name(cursor, f"the name of {what}", 0, NAME_BYTES)
    what = f"tensor {shown(name)}"
    (dimensions,) = cursor.numbers(_KIND, f"the shape of {what}")
    if dimensions > MOST_DIMENSIONS:
        raise cursor.wrong(f"{what} has {dimensions} dimensions, and at most {MOST_DIMENSIONS} are allowed")
    shape = tuple(reversed(cursor.numbers(struct.Struct(f"<{dimensions}Q"), f"the shape of {what}")))
    kind, offset = cursor.numbers(_ARRAY, f"the type of {what}")
    if kind not in _BLOCKS:
        raise cursor.wrong(f"{what} has ggml's type {kind}, which the installed gguf doesn't know", "Update gguf")
    return HeaderEntry(name, shape, _BLOCKS[kind][0], offset, _stored_bytes(cursor, what, shape, kind))


def _stored_bytes(cursor: Cursor, what: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor of one of ggml's types. Raises ArtifactError when the type can't have such a shape."""
    native, block, block_bytes = _BLOCKS[kind]
    if 0 in shape or math.prod(shape) > MOST_VALUES:
        raise cursor.wrong(f"{what} has the shape {shape}, and sizes are 1 or more, {MOST_VALUES:,} values at most")
    if (columns := shape[-1] if shape else 1) % block:
        raise cursor.wrong(f"{what} is {native}, whose blocks hold {block} values, and has rows of {columns:,}")
    return math.prod(shape) // block * block_bytes


def _checked_alignment(cursor: Cursor, alignment: Any) -> int:
    """What tensors are aligned to, in bytes. Raises ArtifactError for what is no power of two."""
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.wrong(f"general.alignment is {shown(alignment)}, and has to be a power of two")
    return int(alignment)


def _placed(cursor: Cursor, entries: Sequence[HeaderEntry], alignment: int) -> tuple[HeaderEntry, ...]:
    """The tensors with offsets from the file's start. Raises ArtifactError when they can't lie there."""
    start = -(-cursor.position // alignment) * alignment
    names: set[str] = set()
    for each in entries:
        if each.name in names:
            raise cursor.wrong(f"it has the tensor {shown(each.name)} twice")
        names.add(each.name)
        if each.offset % alignment:
            where = f"tensor {shown(each.name)} lies at byte {each.offset:,} of the data"
            raise cursor.wrong(f"{where}, which is no multiple of general.alignment, {alignment:,}")
    placed = tuple(replace(each, offset=start + each.offset) for each in entries)
    checked_layout(cursor, placed)
    return placed
