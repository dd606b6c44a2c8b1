"""The header of a safetensors file, anybody's: read strictly, never a weight. Format: README of huggingface/safetensors."""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from tierexport.formats.header import MOST_VALUES, Cursor, Header, HeaderEntry, Room, checked_layout, shown

MOST_HEADER_BYTES = 2 * Room.bytes
"""The longest JSON that is read. The format allows 100 MB; this is 256 bytes for each of the tensors that are shown at most."""

MOST_JSON_VALUES = 16 * Room.tensors
"""The most values in the JSON, brackets and commas being counted. Python takes up to 200 bytes for each, so that the
length alone would not bound memory; a tensor's entry has 8.
"""

NAME_CHARACTERS, METADATA_CHARACTERS, MOST_DIMENSIONS = 1 << 10, 1 << 20, 64
"""The longest name; the longest value of the metadata; the most sizes in a shape."""

METADATA = "__metadata__"
"""The name in a header that is no tensor's: its object has strings about the file."""

ENTRY_KEYS = {"dtype", "shape", "data_offsets"}

DTYPE_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of a value of each dtype, by the format's names."""

_LENGTH = struct.Struct("<Q")


def read_safetensors_header(file: BinaryIO, size: int, name: str, room: Room | None = None) -> Header:
    """The header of a safetensors file; its metadata are the strings of `__metadata__`.

    `file` stands at its start and has `size` bytes; `name` is what errors call it. Raises ArtifactError when the file
    breaks a rule of the format (tensors fill the file from end to end, no byte is shared or left over), or its header
    is longer than MOST_HEADER_BYTES.
    """
    cursor = Cursor(file, size, _LENGTH.size + MOST_HEADER_BYTES, name, room or Room())
    (length,) = cursor.numbers(_LENGTH, "the length of its header")
    found = _parsed(cursor, cursor.take(length, "the header"))
    metadata = _metadata(cursor, found.pop(METADATA, {}))
    start = cursor.position
    tensors = tuple(_entry(cursor, key, value, start) for key, value in found.items())
    _check_filled(cursor, tensors, start)
    return Header(metadata, tensors)


def _parsed(cursor: Cursor, raw: bytes) -> dict[str, Any]:
    """The header's JSON object. Raises ArtifactError when it is none, has too much in it, or has a key twice."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise cursor.wrong(f"its header has {shown(twice)} twice")
        return found

    if sum(map(raw.count, (b",", b"[", b"{"))) > MOST_JSON_VALUES:
        raise cursor.wrong(f"its header has more than {MOST_JSON_VALUES:,} values, and so many are read")
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise cursor.wrong(f"its header is not UTF-8 ({error.reason} at its byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise cursor.wrong(f"its header is not JSON ({type(error).__name__}: {error})") from None
    if not isinstance(found, dict):
        raise cursor.wrong(f"its header is {shown(found)}, and has to be an object")
    return found


def _kept(cursor: Cursor, text: str, what: str) -> str:
    """A text out of JSON, for which there is room; JSON can hold half of a surrogate pair, and nothing can print it."""
    cursor.keep(what, len(text))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise cursor.wrong(f"{what} is not Unicode ({error.reason})") from None
    return text


def _name(cursor: Cursor, name: str, what: str) -> str:
    if len(name) > NAME_CHARACTERS:
        raise cursor.wrong(f"{what} has the name {shown(name)}, and {NAME_CHARACTERS} characters are allowed")
    return _kept(cursor, name, f"the name {shown(name)} in {what}")


def _metadata(cursor: Cursor, found: Any) -> dict[str, str]:
    """The strings of `__metadata__`. Raises ArtifactError when something else is there."""
    if not isinstance(found, dict):
        raise cursor.wrong(f"{METADATA} is {shown(found)}, and has to be an object")
    for key, value in found.items():
        what = f"{METADATA}, {shown(_name(cursor, key, METADATA))},"
        if not isinstance(value, str):
            raise cursor.wrong(f"{what} is {shown(value)} and has to be a string")
        if len(value) > METADATA_CHARACTERS:
            raise cursor.wrong(f"{what} has {len(value):,} characters, and {METADATA_CHARACTERS:,} are allowed")
        _kept(cursor, value, what)
    return found


def _entry(cursor: Cursor, name: str, entry: Any, start: int) -> HeaderEntry:
    """A tensor; `start` is where the data begin, from which the file counts offsets."""
    what = f"tensor {shown(_name(cursor, name, 'the header'))}"
    cursor.keep(what, tensors=1)
    if not isinstance(entry, dict) or entry.keys() != ENTRY_KEYS:
        raise cursor.wrong(f"{what} is {shown(entry)}, and has to have dtype, shape and data_offsets, each once")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise cursor.wrong(f"{what} has the dtype {shown(dtype)}, which is none of {', '.join(DTYPE_BITS)}")
    if not _are_sizes(shape) or math.prod(max(each, 1) for each in shape) > MOST_VALUES:
        raise cursor.wrong(f"{what} has the shape {shown(shape)}, and has to have sizes, {MOST_VALUES:,} values at most")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise cursor.wrong(f"{what} has the data_offsets {shown(offsets)}, and they are begin and end")
    bits, given = math.prod(shape) * DTYPE_BITS[dtype], 8 * (offsets[1] - offsets[0])
    if bits != given:
        raise cursor.wrong(f"{what}, {dtype} of shape {shown(shape)}, takes {bits:,} bits, and is given {given:,}")
    return HeaderEntry(name, tuple(shape), dtype, start + offsets[0], bits // 8)


def _are_sizes(found: Any) -> bool:
    """Whether a value is a list of sizes or offsets, each of which fits into 63 bits."""
    return (
        isinstance(found, list)
        and len(found) <= MOST_DIMENSIONS
        and all(type(each) is int and 0 <= each < 1 << 63 for each in found)
    )


def _check_filled(cursor: Cursor, tensors: Iterable[HeaderEntry], start: int) -> None:
    """Raises ArtifactError unless the tensors fill the file from `start` to its end."""
    end = start
    for each in checked_layout(cursor, tensors):
        if each.offset != end:
            raise cursor.wrong(f"{each.offset - end:,} bytes before tensor {shown(each.name)} belong to none")
        end += each.bytes
    if end != cursor.size:
        raise cursor.wrong(f"{cursor.size - end:,} bytes after its last tensor belong to none")
