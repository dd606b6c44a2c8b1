"""Codec files are written part by part: the bytes that the safetensors library saves, whole or not at all, memory bounded."""

import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from conftest import run
from tierexport.base.errors import VectorError
from tierexport.base.records import Encoded, Floats
from tierexport.model.vector_store import VectorStore
from tierexport.vectors.codecs import CHUNK_ROWS, Codec
from tierexport.vectors.commands import encode_texts
from tierexport.vectors.scaling import fit, random_rotation
from tierexport.vectors.storage import read_codec, write_codec

FITS = [
    ("int8", "rolling"),
    ("int4", "minmax"),
    ("int3", "lloyd"),
    ("int2", "quantile"),
    ("trinary", "lloyd"),
    ("binary", "clip"),
]


def some(count: int, dimensions: int = 24) -> Floats:
    return np.random.default_rng(0).standard_normal((count, dimensions), np.float32)


def codec_of(level: str, scaling: str = "rolling", turned: bool = False) -> Codec:
    rotation = random_rotation(24) if turned else None
    unit = some(300) / np.linalg.norm(some(300), axis=1, keepdims=True)
    return fit(unit, level, scaling, rotation=rotation)


@pytest.mark.parametrize(("level", "scaling"), FITS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [None, 0, 1, 2 * CHUNK_ROWS + 3])
def test_a_file_is_the_library_s_to_the_byte(level: str, scaling: str, turned: bool, count: int | None, tmp_path: Path) -> None:
    codec = codec_of(level, scaling, turned)
    codec = replace(codec, probe=some(1)[0]) if turned else codec
    held: dict[str, Any] = {"low": codec.low, "high": codec.high, "rotation": codec.rotation, "probe": codec.probe}
    if codec.table:
        held |= {"borders": codec.table.borders, "centers": codec.table.centers}
    if count is None:
        write_codec(tmp_path / "parts", codec)
    else:
        vectors = some(count)
        held["codes"] = codec.coded(vectors)
        write_codec(tmp_path / "parts", codec, codec.coded_in_parts(vectors))
        write_codec(tmp_path / "whole", codec, codec.coded(vectors))
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    with safe_open(tmp_path / "parts", framework="np") as file:
        settings = file.metadata()
    arrays = {name: np.ascontiguousarray(each) for name, each in held.items() if each is not None}
    assert (tmp_path / "parts").read_bytes() == save(arrays, settings)
    assert sorted(load_file(tmp_path / "parts")) == sorted(arrays)


def test_an_error_in_the_middle_leaves_the_last_file(tmp_path: Path) -> None:
    codec, path = codec_of("int8"), tmp_path / "v"
    write_codec(path, codec, codec.coded(some(9)))
    before, vectors = path.read_bytes(), some(2 * CHUNK_ROWS)
    vectors[CHUNK_ROWS + 5, 3] = np.nan
    with pytest.raises(VectorError, match=f"vector {CHUNK_ROWS + 5} holds NaN"):
        write_codec(path, codec, codec.coded_in_parts(vectors))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tierexport.base.tensor_file import Parts
from tierexport.vectors.storage import read_codec, write_codec

def parts():
    yield np.zeros((100_000, 24), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

path = Path(sys.argv[1])
write_codec(path, read_codec(path)[0], Parts((200_000, 24), np.dtype(np.uint8), parts()))
"""


def test_a_kill_in_the_middle_leaves_the_last_file(tmp_path: Path) -> None:
    codec, path = codec_of("int8"), tmp_path / "v"
    write_codec(path, codec, codec.coded(some(9)))
    before = path.read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2  # some of the codes had been written


def test_a_disk_that_fills_up_is_one_message_and_leaves_the_last_file(tiny_model: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk; the vectors are in the cache already."""
    texts, codec, out = tmp_path / "texts.txt", tmp_path / "codec", tmp_path / "out" / "v"
    texts.write_text("".join(f"{number}\n" for number in range(1200)))
    assert run("vectors", "fit", tiny_model, "--level", "int8", "--count", "50", "--out", codec).exit_code == 0
    command = ("vectors", "encode", tiny_model, texts, "--codec", codec, "--out")
    assert run(*command, out).exit_code == 0
    before = out.read_bytes()
    limit = len(before) // 2
    done = subprocess.run(
        [sys.executable, "-m", "tierexport", *map(str, command), str(out)], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert f"no space left while writing {out}: free some and run again" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_memory_does_not_grow_with_texts(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the model, which has a shard of texts at a time: what a text more takes is less than half of its code."""
    monkeypatch.setenv("TIEREXPORT_CACHE", str(tmp_path / "cache"))
    assert run("vectors", "fit", tiny_model, "--level", "int8", "--count", "50", "--out", tmp_path / "codec").exit_code == 0

    def drawn(_: Any, texts: Sequence[str], __: str, store: VectorStore) -> Encoded:
        store.add([[1, 2]] * len(texts), some(len(texts), 64))
        return store.close(0)

    def peak(count: int) -> int:
        texts = tmp_path / f"{count}.txt"
        texts.write_text("".join(f"text {number}\n" for number in range(count)))
        tracemalloc.start()
        codec, written = encode_texts(str(tiny_model), str(texts), tmp_path / "codec", "passage", tmp_path / f"{count}")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (codec.bytes, written) == (64, count)
        return most

    peak(600)  # whatever is imported and kept from the first run on; the probe is the model's own
    monkeypatch.setattr("tierexport.model.reference.encode", drawn)
    few, many = peak(2_000), peak(12_000)
    assert many - few < 0.5 * 64 * 10_000
    _, codes = read_codec(tmp_path / "12000")
    assert codes is not None
    assert codes.shape == (12_000, 64)
