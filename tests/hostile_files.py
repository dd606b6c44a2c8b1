"""GGUF and safetensors files byte by byte, files with something wrong in them, and what inspect makes of each.

`python -c "import hostile_files; hostile_files.hammer(...)"` runs them all in a process whose memory can be measured.
"""

import io
import json
import os
import random
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tierexport.base.errors import TierexportError
from tierexport.formats.gguf.header import read_gguf_header
from tierexport.formats.header import Header
from tierexport.formats.inspect import inspect
from tierexport.formats.torchao.header import read_safetensors_header
from tierexport.report.tables import inspection_parts

MUTATIONS = 200


def header_of(path: Path) -> Header:
    reader = read_safetensors_header if path.suffix == ".safetensors" else read_gguf_header
    with path.open("rb") as opened:
        return reader(opened, path.stat().st_size, path.name)


def written(path: Path, content: bytes, size: int | None = None) -> Path:
    """A file of these bytes, and of zeros up to `size`, which take no room on the disk."""
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    return path


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(name: str | bytes, shape: Sequence[int] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry, its shape in ggml's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_file(keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), size: int = 1 << 10, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    return (head + b"".join(keys) + b"".join(tensors)).ljust(size, b"\0")


def tensor(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(header: Mapping[str, Any] | str | bytes, size: int = 8, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(size)


# --- mutations

ABSURD = (0, 1, 3, 255, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@dataclass
class Gguf:
    """The header of a GGUF that this project wrote, to be harmed, and where in it one tensor's entry is."""

    raw: bytearray
    size: int
    name: int
    draw: random.Random

    @property
    def shape(self) -> int:
        return self.name + int.from_bytes(self.raw[self.name - 8 : self.name], "little")

    @property
    def type(self) -> int:
        return self.shape + 4 + 8 * self.raw[self.shape]

    def put(self, at: int, size: int, value: int | None = None) -> None:
        absurd = self.draw.choice(ABSURD) if value is None else value
        self.raw[at : at + size] = (absurd & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def cut(self) -> None:
        self.size = self.draw.choice([self.draw.randrange(len(self.raw)), self.draw.randrange(len(self.raw), self.size)])

    def miscount(self) -> None:
        self.put(self.draw.choice([8, 16]), 8)

    def misplace(self) -> None:
        self.put(self.type + 4, 8, self.draw.choice([None, 32 * self.draw.randrange(1000)]))

    def mistype(self) -> None:
        self.put(self.draw.choice([self.shape, self.type]), 4)

    def misshape(self) -> None:
        self.put(self.draw.randrange(self.shape + 4, self.type, 8), 8)

    def missize(self) -> None:
        known = self.raw.find(b"general.name")
        self.put(self.draw.choice([self.name - 8, known - 8, known + 16]), 8)

    def misspell(self) -> None:
        self.raw[self.name + self.draw.randrange(8)] = self.draw.choice([0xFF, 0xC0, 0x80, 0])

    def rename(self) -> None:
        self.raw[self.name : self.name + 6] = self.draw.choice([b"blk.1.", b"blk.0.", b"blk.9."])

    def splice(self) -> None:
        at = self._anywhere()
        self.raw[at : at + self.draw.randrange(9)] = self.draw.randbytes(self.draw.randrange(9))

    def flip(self) -> None:
        for _ in range(self.draw.randrange(1, 9)):
            self.raw[self._anywhere()] = self.draw.randrange(256)

    def _anywhere(self) -> int:
        """A place among the counts and keys or among the tensors' entries, not in the vocabulary between."""
        return self.draw.choice([self.draw.randrange(3000), self.draw.randrange(len(self.raw) - 3000, len(self.raw))])


def mutated_gguf(raw: bytes, size: int, draw: random.Random) -> tuple[bytes, int]:
    """A file's header with one thing wrong in it, and the file's size."""
    spots = (b"blk.0.attn_q.weight", b"blk.1.ffn_up.weight", b"token_embd.weight", b"blk.0.attn_q.bias")
    file = Gguf(bytearray(raw), size, raw.find(draw.choice([spot for spot in spots if spot in raw])), draw)
    harms = (file.cut, file.miscount, file.misplace, file.mistype, file.misshape, file.missize, file.misspell, file.rename)
    draw.choice([*harms, file.splice, file.flip])()
    return bytes(file.raw), file.size


ODD = (b"-1", b"1e999", b"9" * 400, b"null", b"true", b'"F32"', b"[]", b"{}", b"[" * 5000, b'"\\ud800"', b"\xff", b"")
SWAPS = ((b'"F32"', b'"F64"'), (b'"I8"', b'"F4"'), (b"[0,", b"[8,"), (b"layer.0", b"layer.1"), (b'":"', b'":["'))


def mutated_safetensors(raw: bytes, size: int, draw: random.Random) -> tuple[bytes, int]:
    """The same of a safetensors file, whose header's length is made to fit or left wrong."""
    text, data = raw[8:], size - len(raw)
    at = draw.randrange(len(text))
    number = next((place for place in range(at, len(text)) if text[place : place + 1].isdigit()), at)
    odd, (old, new) = draw.choice(ODD), draw.choice(SWAPS)
    harmed = draw.choice(
        [
            text[:number] + odd + text[number + 1 :],
            text[:at] + odd + text[at + len(odd) :],
            text[:at] + text[at + draw.randrange(1, 300) :],
            text[:at] + text[at : at + 300] + text[at:],
            text[:at] + draw.randbytes(4) + text[at + 4 :],
            text.replace(old, new, draw.randrange(1, 9)),
            None,
        ]
    )
    if harmed is not None:
        return struct.pack("<Q", len(harmed)) + harmed, 8 + len(harmed) + data
    length = draw.choice([len(text) - 1, len(text) + 1, 100_000_001, *ABSURD])
    return draw.choice([(raw, draw.randrange(size)), (struct.pack("<Q", length) + text, size)])


def write_bombs(folder: Path) -> None:
    """Files that would take much memory or time if they were believed, or kept."""
    written(folder / "texts.gguf", gguf_file([key("a", 9, array(8, (1 << 23) - 8))]), 1 << 27)
    layers = [info(f"blk.{number}.attn_q.weight", offset=256 * number) for number in range(1 << 15)]
    written(folder / "tensors.gguf", gguf_file([], layers), 1 << 24)
    written(folder / "nested.gguf", gguf_file([key("a", 9, array(9, 5_000_000, array(0, 0) * 5_000_000))]))
    written(folder / "keys.gguf", gguf_file([key(f"k{number}", 0, b"\1") for number in range(200_000)]))
    written(folder / "spaces.safetensors", safetensors(b"{" + b" " * 99_000_000))
    written(folder / "objects.safetensors", safetensors(b'{"a":{' + b'"":{},' * 8_000_000))
    names = {f"{number:01000}": tensor(shape=[0], end=0) for number in range(40_000)}
    written(folder / "names.safetensors", safetensors(names))
    many = ",".join(f'"k{number}":1' for number in range(500_000))
    written(folder / "values.safetensors", safetensors(f'{{"\N{GRINNING FACE}":1,{many}}}'))
    lists = '{"a":["' + "\N{GRINNING FACE}" * 1_900_000 + '",' + "[]," * 250_000
    written(folder / "lists.safetensors", safetensors(f"{lists}[]]}}"[: (8 << 20) - 10]))
    escapes = {str(number): "\x01" * 100_000 for number in range(41)}
    written(folder / "escapes.safetensors", safetensors({"__metadata__": escapes}, 0))


# --- what comes of them


def outcome(path: Path) -> str:
    """What comes of showing a file in both ways."""
    try:
        for found in inspect(path):
            json.dumps(found.as_json(), ensure_ascii=False, allow_nan=False).encode()
            console = Console(file=io.StringIO(), width=160)
            for part in inspection_parts(found):
                console.print(part)
    except TierexportError:
        return "refused"
    except BaseException as error:  # whatever else it is, it has to be told, not to stop the others
        return f"{type(error).__name__}: {error}"
    return "shown"


def hammer(folder: str, *bases: str) -> None:
    """Inspect what lies in a folder, and MUTATIONS of each base; print what came of them as JSON.

    Counts of outcomes, the longest time in seconds, and by how many MiB the peak of memory grew.
    """
    found: dict[str, Any] = {"outcomes": {}, "seconds": 0.0}
    before = _peak()

    def judge(path: Path, what: str) -> None:
        start = time.monotonic()
        came = f"{what}: {outcome(path)}"
        found["seconds"] = max(found["seconds"], time.monotonic() - start)
        found["outcomes"][came] = found["outcomes"].get(came, 0) + 1
        path.unlink()

    for path in sorted(Path(folder).iterdir()):
        judge(path, path.name)
    for base in map(Path, bases):
        mutate = mutated_gguf if base.suffix == ".gguf" else mutated_safetensors
        with base.open("rb") as opened:
            raw = opened.read(min(each.offset for each in header_of(base).tensors))
        for number in range(MUTATIONS):
            content, size = mutate(raw, base.stat().st_size, random.Random(number))
            judge(written(Path(folder) / f"mutated{base.suffix}", content, size), base.name)
    print(json.dumps({**found, "megabytes": _peak() - before}))


def _peak() -> float:
    """The most memory that this process ever held, in MiB. Not getrusage's, which counts its parent's before exec too."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
