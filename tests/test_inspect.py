"""What `inspect` says of files of all kinds, hostile ones among them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from conftest import RECIPES, Built, build, run
from hostile_files import MUTATIONS, array, gguf_file, header_of, info, key, safetensors, tensor, text, write_bombs, written
from tierexport.base.errors import ArtifactError
from tierexport.formats.header import Omitted
from tierexport.formats.inspect import inspect

MOST_SECONDS, MOST_MEGABYTES = 10, 200


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Built:
    """A tiny model's GGUF and torchao folder, at 4 bits and below."""
    return build(RECIPES / "four_bit.toml", tmp_path_factory.mktemp("tiny") / "out", "--set", f"model={tiny_model}")


@pytest.fixture(scope="module")
def base_gguf(tiny: Built) -> Path:
    return tiny.folder / str(tiny.artifact("gguf")["path"])


@pytest.fixture(scope="module")
def base_safetensors(tiny: Built) -> Path:
    return tiny.folder / str(tiny.artifact("torchao")["path"]) / "model.safetensors"


# --- against the formats' own readers


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with 250,000 tokens, as bge-m3 has, and with every type of value."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_token_list([f"token {number}" for number in range(250_000)])
    writer.add_token_scores([0.5] * 250_000)
    writer.add_array("some.words", ["three", "short", "wörds"])
    writer.add_array("some.flags", [True, False])
    writer.add_float64("some.float", 1e-300)
    writer.add_int8("some.small", -3)
    writer.add_uint64("some.large", 2**63)
    writer.add_string("some.text", "x" * 100_000)
    writer.add_tensor("token_embd.weight", np.ones((5, 64), np.float16))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((3, 36), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.attn_q.bias", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("fixture", ["base_gguf", "large_vocabulary"])
def test_gguf_headers_are_those_that_ggufs_own_reader_finds(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    found, reader = header_of(path), gguf.GGUFReader(path)
    assert [(each.name, each.type, each.shape, each.offset, each.bytes) for each in found.tensors] == [
        (each.name, each.tensor_type.name, tuple(map(int, reversed(each.shape))), each.data_offset, each.n_bytes)
        for each in reader.tensors
    ]
    fields = {name: each for name, each in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(found.metadata) == list(fields)
    for name, value in found.metadata.items():
        theirs = fields[name]
        if isinstance(value, Omitted):
            length = len(theirs.contents() if theirs.types == [gguf.GGUFValueType.STRING] else theirs.data)
            assert value == Omitted(theirs.types[-1].name, length), name
        else:
            assert value == theirs.contents(), name
    if fixture == "large_vocabulary":
        assert found.metadata["tokenizer.ggml.tokens"] == Omitted("STRING", 250_000)
        assert found.metadata["some.words"] == ["three", "short", "wörds"]


@pytest.mark.parametrize("metadata", [None, {"who": "wörd", "quoted": '{"a": "\\u0001"}'}])
def test_safetensors_headers_are_those_that_the_formats_own_reader_finds(
    metadata: dict[str, str] | None, base_safetensors: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.safetensors"
    save_file({"a": np.ones((2, 3), np.float16), "none": np.ones((0, 4)), "one": np.array(1, np.int64)}, mine, metadata)
    for path in (mine, base_safetensors):
        found = header_of(path)
        with safe_open(path, "np") as opened:
            theirs = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
            assert found.metadata == (opened.metadata() or {})
            assert {each.name: (each.shape, each.type) for each in found.tensors} == {
                name: (tuple(each.get_shape()), each.get_dtype()) for name, each in theirs.items()
            }
        raw = path.read_bytes()
        for each in found.tensors:
            if each.name == "a":
                assert raw[each.offset : each.offset + each.bytes] == np.ones((2, 3), np.float16).tobytes()


def test_types_of_less_than_a_byte_are_counted_in_bits(tmp_path: Path) -> None:
    for dtype, size in (("F4", 4), ("F6_E2M3", 6), ("F8_E8M0", 8), ("C64", 64)):
        path = written(tmp_path / "some.safetensors", safetensors({"a": tensor(dtype, [2, 4], 0, size)}, size))
        with safe_open(path, "np") as opened:
            assert opened.get_slice("a").get_dtype() == dtype
        assert [(each.type, each.bytes) for each in header_of(path).tensors] == [(dtype, size)]


def test_what_is_shown_is_what_the_manifest_says(tiny: Built) -> None:
    for found, artifact in zip(inspect(tiny.folder), tiny.manifest["artifacts"], strict=True):
        shown = [(each.tensor.name, each.tensor.role, each.tensor.layer, each.type, each.bytes) for each in found.tensors]
        planned = [tuple(each[key] for key in ("name", "role", "layer", "type", "bytes")) for each in artifact["tensors"]]
        assert sorted(shown) == sorted(planned)
        assert (found.format, found.bytes) == (artifact["format"], artifact["bytes"])


@pytest.mark.parametrize("manifest", ['{"model": {}, "artifacts": []}', '{"version": 2, "artifacts": []}', "{"])
def test_a_folder_is_shown_whatever_its_manifest_is(manifest: str, tiny: Built, tmp_path: Path) -> None:
    """What files hold they say themselves, those of an earlier or a later tierexport too."""
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "other"))
    (folder / "manifest.json").write_text(manifest)
    expected = [replace(each, path=each.path.replace(str(tiny.folder), str(folder))) for each in inspect(tiny.folder)]
    assert list(inspect(folder)) == expected
    assert len(expected) == 2


# --- hostile files


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


GGUF_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the mark of a GGUF file takes 4 bytes, and 0 are left: 4 are missing"),
    "no GGUF": (b"PK\3\4....", r"begins with b'PK\\x03\\x04', not with b'GGUF'\. Name a GGUF file"),
    "version 1": (gguf_file(version=1), "is a GGUF of version 1, and 2 and 3 are read"),
    "big-endian": (gguf_file(version=3 << 24), "is a big-endian GGUF, which is not read here. Convert it with"),
    "many tensors": (gguf_file()[:8] + number(1 << 50) + bytes(84), "has 1,125,899,906,842,624 tensors, and the 76"),
    "many keys": (gguf_file()[:16] + number(9) + bytes(76), "it has 9 keys, and the 76 bytes that are left can't hold so many"),
    "long key": (gguf_file([number(70_000)]), "name of key 1 of 1 has 70,000 bytes, and 1 to 65,536 are allowed"),
    "no key": (gguf_file([key("", 4, bytes(4))]), "the name of key 1 of 1 has 0 bytes"),
    "key not UTF-8": (gguf_file([key(b"a\xff", 4, bytes(4))]), r"key 1 of 1 is not UTF-8 \(invalid start byte at its byte 1\)"),
    "key twice": (gguf_file([key("a", 4, bytes(4))] * 2), "it has the key 'a' twice"),
    "no such type": (gguf_file([key("a", 13, bytes(4))]), "'a' has type 13, and GGUF's types are 0 to 12"),
    "no truth value": (gguf_file([key("a", 7, b"\2")]), "'a' is a truth value of 2, and 0 and 1 are allowed"),
    "text not UTF-8": (gguf_file([key("a", 8, text(b"\xc3("))]), "'a' is not UTF-8"),
    "long text": (gguf_file([key("a", 8, number(1 << 50))]), "'a' takes 1,125,899,906,842,624 bytes, and 979 are left"),
    "long array": (gguf_file([key("a", 9, array(6, 1 << 61))]), "'a', an array of 2,305,843,009,213,693,952 elements, takes"),
    "no such elements": (gguf_file([key("a", 9, array(99, 1))]), "'a' is an array of type 99"),
    "deep": (gguf_file([key("a", 9, array(9, 1) * 5)]), "'a' has arrays in arrays beyond a depth of 4"),
    "ends in texts": (gguf_file([key("a", 9, array(8, 300, text("x" * 9) * 9))], size=2_500), "'a' takes [0-9,]+ bytes, and"),
    "alignment": (gguf_file([key("general.alignment", 4, b"\x30\0\0\0")]), "general.alignment is 48, and has to be a power of"),
    "alignment 0": (gguf_file([key("general.alignment", 4, bytes(4))]), "general.alignment is 0, and has"),
    "alignment a text": (gguf_file([key("general.alignment", 8, text("32"))]), "general.alignment is '32', and has"),
    "long name": (gguf_file([], [info("n" * 65)]), "the name of tensor 1 of 1 has 65 bytes, and 0 to 64 are allowed"),
    "name not UTF-8": (gguf_file([], [info(b"\xff")]), "the name of tensor 1 of 1 is not UTF-8"),
    "name twice": (gguf_file([], [info("a"), info("a", offset=256)]), "it has the tensor 'a' twice"),
    "5 dimensions": (gguf_file([], [info("a", (1,) * 5)]), "tensor 'a' has 5 dimensions, and at most 4 are allowed"),
    "no values": (gguf_file([], [info("a", (32, 0))]), r"tensor 'a' has the shape \(0, 32\), and sizes are 1 or more"),
    "too many values": (gguf_file([], [info("a", (1 << 32, 1 << 32))]), "'a' has the shape .*1,152,921,504,606,846,976 values"),
    "no such ggml type": (gguf_file([], [info("a", kind=4)]), "'a' has ggml's type 4, which the installed gguf"),
    "half a block": (gguf_file([], [info("a", (48, 2), 2)]), "'a' is Q4_0, whose blocks hold 32 values, and has rows of 48"),
    "misaligned": (gguf_file([], [info("a", offset=8)]), "'a' lies at byte 8 of the data, which is no multiple of gen"),
    "overlapping": (gguf_file([], [info("a"), info("b", offset=32)]), "'a' and 'b' share bytes, one up to byte [0-9]+ and"),
    "truncated": (gguf_file([], [info("a", (32, 64))]), "'a' ends at byte 8,288, and the file has 1,024: 7,264 are missing"),
    "far away": (gguf_file([], [info("a", offset=1 << 63)]), "'a' ends at byte 9,223,372,036,854,776,[0-9]+, and the file"),
    "control characters": (gguf_file([key("\x1b[31m", 13, b"")]), r"'\\x1b\[31m' has type 13"),
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF_CASES)
def test_a_gguf_that_breaks_a_rule_is_refused_with_the_rule(name: str, tmp_path: Path) -> None:
    content, message = GGUF_CASES[name]
    path = written(tmp_path / "some.gguf", content)
    with pytest.raises(ArtifactError, match=message) as error:
        inspect(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).count(". ") >= 1  # what to do


ONE = json.dumps(tensor())

SAFETENSORS_CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the length of its header takes 8 bytes, and 0 are left: 8 are missing"),
    "long header": (safetensors({}, length=1 << 40), "the header takes 1,099,511,627,776 bytes, and 10 are left"),
    "no object": (safetensors("[1]"), r"its header is \[1\], and has to be an object"),
    "no JSON": (safetensors('{"a": tensor}'), r"its header is not JSON \(JSONDecodeError: Expecting value: line 1 column 7"),
    "deep": (safetensors('{"a":' + "[" * 100_000), "its header is not JSON .RecursionError"),
    "unfinished": (safetensors(f'{{"a": {ONE}'), "its header is not JSON .JSONDecodeError: Expecting ',' delimiter"),
    "comma at the end": (safetensors(f'{{"a": {ONE},}}'), "its header is not JSON .JSONDecodeError: "),
    "something after": (safetensors(f'{{"a": {ONE}}} {{}}'), "its header is not JSON .JSONDecodeError: Extra data"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), r"its header is not UTF-8 \(invalid start byte at its byte 2\)"),
    "half a character": (safetensors(f'{{"\\ud800": {ONE}}}'), r"the name '\\ud800' in the header is not Unicode"),
    "long name": (safetensors({"n" * 1025: tensor()}), "the header has the name 'nnn.*, and 1024 characters are allowed"),
    "name twice": (safetensors(f'{{"a": {ONE}, "\\u0061": {ONE}}}'), "its header has 'a' twice"),
    "entry no object": (safetensors({"a": [1]}), r"'a' is \[1\], and has to have dtype, shape and data_offsets, each once"),
    "entry with more": (safetensors({"a": {**tensor(), "x": 1}}), "tensor 'a' is .*, and has to have dtype, shape and"),
    "dtype twice": (safetensors('{"a": {"dtype": "F32", ' + ONE[1:] + "}"), "its header has 'dtype' twice"),
    "no such dtype": (safetensors({"a": tensor("F5")}), "tensor 'a' has the dtype 'F5', which is none of C64, F64"),
    "dtype a list": (safetensors({"a": tensor(["F32"])}), r"tensor 'a' has the dtype \['F32'\], which"),
    "negative size": (safetensors({"a": tensor(shape=[-2])}), r"tensor 'a' has the shape \[-2\], and has to have sizes"),
    "size a truth value": (safetensors({"a": tensor(shape=[True, 2])}), r"has the shape \[True, 2\]"),
    "too many values": (safetensors({"a": tensor(shape=[1 << 40, 1 << 40])}), "1,152,921,504,606,846,976 values at most"),
    "huge number": (safetensors('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + "]}}"), "header is not JSON .ValueError"),
    "backwards": (safetensors({"a": tensor(begin=8, end=0)}), r"has the data_offsets \[8, 0\], and they are begin and end"),
    "offset a fraction": (safetensors({"a": tensor(end=8.0)}), r"has the data_offsets \[0, 8\.0\]"),
    "wrong size": (safetensors({"a": tensor(end=4)}), r"tensor 'a', F32 of shape \[2\], takes 64 bits, and is given 32"),
    "half a byte": (safetensors({"a": tensor("F4", [3], 0, 1)}), r"'a', F4 of shape \[3\], takes 12 bits, and is given 8"),
    "overlapping": (safetensors({"a": tensor(), "b": tensor(begin=4, end=12)}, 12), "tensors 'a' and 'b' share bytes"),
    "a hole": (safetensors({"a": tensor(begin=4, end=12)}, 12), "4 bytes before tensor 'a' belong to none"),
    "bytes left": (safetensors({"a": tensor()}, 20), "12 bytes after its last tensor belong to none"),
    "truncated": (safetensors({"a": tensor(shape=[200], end=800)}, 300), "and the file has [0-9]+: 500 are missing"),
    "metadata no object": (safetensors({"__metadata__": None}), "__metadata__ is None, and has to be an object"),
    "metadata no text": (safetensors({"__metadata__": {"a": 1}}), "__metadata__, 'a', is 1 and has to be a string"),
    "metadata twice": (safetensors('{"__metadata__": {}, "__metadata__": {}}'), "its header has '__metadata__' twice"),
    "key twice": (safetensors('{"__metadata__": {"a": "", "a": ""}}'), "its header has 'a' twice"),
    "long metadata": (safetensors({"__metadata__": {"a": "x" * (1 << 21)}}), "'a', has 2,097,152 characters, and 1,048,576"),
    "many values": (safetensors("[" * (1 << 20)), "its header has more than 524,288 values, and so many are read"),
    "many sizes": (safetensors({"a": tensor(shape=[1] * 65)}), "has the shape .*, and has to have sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS_CASES)
def test_a_safetensors_file_that_breaks_a_rule_is_refused_with_the_rule(name: str, tmp_path: Path) -> None:
    content, message = SAFETENSORS_CASES[name]
    path = written(tmp_path / "some.safetensors", content)
    with pytest.raises(ArtifactError, match=message) as error:
        inspect(path)
    assert str(error.value).startswith(f"{path}: ")


def test_headers_beyond_the_limits_are_refused(tmp_path: Path) -> None:
    for name, begin, message in (
        ("some.safetensors", number((1 << 23) + 1), "ends beyond the first 8,388,616 bytes, which a header may take"),
        ("some.gguf", gguf_file([key("a", 9, array(0, 1 << 27))]), "ends beyond the first 67,108,864 bytes"),
    ):
        with pytest.raises(ArtifactError, match=message):
            inspect(written(tmp_path / name, begin, 1 << 28))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_hostile_files_end_in_a_result_or_a_message(
    base_gguf: Path, large_vocabulary: Path, base_safetensors: Path, tmp_path: Path
) -> None:
    """In a process of its own, whose memory is measured."""
    write_bombs(tmp_path)
    bases = (base_gguf, large_vocabulary, base_safetensors)
    code = "import sys, hostile_files; hostile_files.hammer(*sys.argv[1:])"
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, str(tmp_path), *map(str, bases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert {each.partition(": ")[2] for each in found["outcomes"]} <= {"shown", "refused"}, found
    for base in bases:
        assert found["outcomes"][f"{base.name}: refused"] > MUTATIONS / 2
    assert found["seconds"] < MOST_SECONDS
    assert found["megabytes"] < MOST_MEGABYTES


# --- warnings

KEYS: dict[str, Any] = {
    "general.architecture": "bert", "bert.pooling_type": 1, "bert.context_length": 512, "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.seperator_token_id": 102, "quantize.imatrix.file": "some.gguf",
}  # fmt: skip
TENSORS = {
    "token_embd.weight": ((256, 8), "Q8_0"), "blk.0.attn_q.weight": ((256, 256), "Q4_K"), "blk.0.attn_q.bias": ((256,), "F32"),
    "position_embd.weight": ((256, 512), "Q8_0"),
}  # fmt: skip
LAST = {"bert.pooling_type": 3, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_eos_token": True}


def model(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> Path:
    """A GGUF with KEYS and TENSORS, some of them replaced; None leaves one out."""
    kinds = {str: (8, text), bool: (7, lambda value: bytes([value])), int: (4, lambda value: value.to_bytes(4, "little"))}
    pairs = {name: value for name, value in {**KEYS, **keys}.items() if value is not None}
    infos, place = [], 0
    for name, (shape, native) in {**TENSORS, **tensors}.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[native]]
        infos.append(info(name, shape, int(gguf.GGMLQuantizationType[native]), place))
        place += -(-int(np.prod(shape)) // block * size // 32) * 32
    entries = [key(name, kinds[type(value)][0], kinds[type(value)][1](value)) for name, value in pairs.items()]
    return written(path, gguf_file(entries, infos, 0), (1 << 12) + place)


@pytest.mark.parametrize(
    ("keys", "tensors", "warning"),
    [
        ({}, {}, None),
        ({"general.architecture": None}, {}, "no general.architecture: llama.cpp can't load it"),
        ({"bert.pooling_type": None}, {}, "no pooling type: llama.cpp returns one vector per token"),
        ({"bert.pooling_type": 0}, {}, "no pooling type"),
        ({"bert.pooling_type": "mean"}, {}, None),
        ({"general.architecture": None, "general.type": "imatrix"}, {}, None),
        (LAST, {}, None),
        ({**LAST, "tokenizer.ggml.eos_token_id": None}, {}, "last-token pooling, and no tokenizer.ggml.eos_token_id"),
        ({**LAST, "tokenizer.ggml.add_eos_token": False}, {}, "add_eos_token is not true: no end token is added"),
        ({**LAST, "tokenizer.ggml.add_eos_token": None}, {}, "add_eos_token is not true"),
        ({**LAST, "tokenizer.ggml.add_eos_token": None, "tokenizer.ggml.model": "t5"}, {}, None),
        ({"tokenizer.ggml.seperator_token_id": None}, {}, "a BERT tokenizer without tokenizer.ggml.seperator_token_id"),
        ({"tokenizer.ggml.seperator_token_id": None, "tokenizer.ggml.model": "gpt2"}, {}, None),
        ({"bert.context_length": None}, {}, "no context_length"),
        ({"bert.context_length": 8192}, {}, "context_length is 8192, and the position table ends at 512"),
        ({"quantize.imatrix.file": None}, {}, "1 tensors at 4 bits or below, and no quantize.imatrix"),
        ({"quantize.imatrix.file": None}, {"blk.0.attn_q.weight": ((256, 256), "MXFP4")}, None),
        ({}, {"token_embd.weight": ((256, 8192), "BF16")}, "the token table at BF16 takes more than half of the bytes"),
        ({}, {"blk.0.ffn_up.weight": ((320, 32), "Q5_0")}, "1 tensors have a 5-bit type beside K-quants"),
        ({}, {"scalar": ((), "F32")}, None),
    ],
)  # fmt: skip
def test_what_is_known_to_go_wrong_is_warned_of(
    keys: dict[str, Any], tensors: dict[str, Any], warning: str | None, tmp_path: Path
) -> None:
    path = model(tmp_path / "some.gguf", keys, tensors)
    (found,) = inspect(path)
    assert len(found.warnings) >= (warning is not None)
    assert any(warning in each for each in found.warnings) if warning else not found.warnings
    shown = run("inspect", path)
    assert shown.exit_code == 0
    assert shown.stdout.count("warning:") == len(found.warnings)


@pytest.fixture
def torchao(tiny: Built, tmp_path: Path) -> Path:
    """A torchao folder to change."""
    return Path(shutil.copytree(tiny.folder / "torchao", tmp_path / "torchao"))


def rewrite(path: Path, content: str | None) -> None:
    """Replace a file that may be linked to another one; None removes it."""
    path.unlink()
    if content is not None:
        path.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "warning"),
    [
        ("modules.json", None, "no modules.json: pooling is left to the reader's guess"),
        ("modules.json", "[1]", "modules.json names no pooling: sentence-transformers returns one vector per token"),
        ("config.json", None, "quantized tensors, and no config.json: transformers can't load them"),
        ("config.json", "{}", "quantized tensors, and no quantization_config in config.json: transformers can't place them"),
    ],
)  # fmt: skip
def test_a_folder_without_what_its_readers_need_is_warned_of(
    name: str, content: str | None, warning: str, torchao: Path
) -> None:
    (whole,) = inspect(torchao)
    assert (whole.format, whole.metadata["pooling"]) == ("torchao", "mean")
    rewrite(torchao / name, content)
    (found,) = inspect(torchao)
    assert set(found.warnings) - set(whole.warnings) == {warning}
    (alone,) = inspect(torchao / "model.safetensors")
    assert (alone.tensors, alone.warnings) == (whole.tensors, whole.warnings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[" * 10_000, "config.json is not JSON"),
        ("modules.json", " " * (1 << 20) + "[]", "modules.json has 1,048,578 bytes, and 1,048,576 are read"),
    ],
)
def test_a_folder_whose_settings_cant_be_read_is_refused(name: str, content: str, message: str, torchao: Path) -> None:
    rewrite(torchao / name, content)
    with pytest.raises(ArtifactError, match=f"{message}.*: .*inspect the file with the weights alone"):
        inspect(torchao)


# --- what is looked at, and how it is shown


def test_files_that_belong_together_are_shown_together(base_safetensors: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "parts-00001-of-00002.gguf"):
        model(tmp_path / name, {}, {})
    written(tmp_path / "parts-00002-of-00002.gguf", gguf_file([], [info("blk.1.attn_q.weight")]))
    for name in ("model/modules.json", "other/config.json", ".hidden/more.gguf", "model/2_Dense/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("[]")
    for name in ("model/part-1", "model/part-2", "model/2_Dense/model", "other/model", "other/head/model"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        save_file({f"{name[-1]}.weight": np.ones((2, 3), np.float16)}, tmp_path / f"{name}.safetensors")
    found = {str(Path(each.path).relative_to(tmp_path)): each for each in inspect(tmp_path)}
    assert {name: (each.format, len(each.tensors)) for name, each in found.items()} == {
        "a.gguf": ("gguf", 4), "parts-00001-of-00002.gguf": ("gguf", 5),
        "model": ("safetensors", 3), "other": ("safetensors", 2),
    }  # fmt: skip
    assert [each.tensor.name for each in found["model"].tensors] == ["2_Dense/l.weight", "1.weight", "2.weight"]
    assert found["parts-00001-of-00002.gguf"].bytes == sum(path.stat().st_size for path in tmp_path.glob("parts*"))


def test_places_with_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no \*\.gguf and no \*\.safetensors: name a folder"):
        inspect(tmp_path)
    for place in range(65):
        (tmp_path / f"{place}.gguf").touch()
    with pytest.raises(ArtifactError, match="holds 65 files with weights, and 64 are shown: name one of them"):
        inspect(tmp_path)


def test_the_map_is_read_without_colours(base_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = run("inspect", base_gguf).stdout
    rows = [line.split() for line in shown.splitlines() if line.strip()]
    head = next(row for row in rows if row[:1] == ["layer"])
    assert head[-6:] == ["attention_q", "attention_k", "attention_v", "attention_output", "ffn_up", "ffn_down"]
    assert ["0", *["IQ4_NL"] * 6] in rows
    assert any(row[0] == "token_embeddings" and len(row) == 2 for row in rows)
    assert ["norms,", "biases,", "positions", "F32"] in rows
    assert "pooling = mean" in shown
    assert "quantize.imatrix.file = imatrix.gguf" in shown


def test_nothing_in_a_file_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    nan = key("some.nan", 12, np.array(np.nan).tobytes())
    hostile = [key("general.name", 8, text("\x1b[2J[red]\x9b2J")), nan, key("[bold]k", 9, array(0, 300, bytes(300)))]
    path = written(tmp_path / "some.gguf", gguf_file(hostile, [info("[/]\x1b[2J.weight")]))
    shown, printed = run("inspect", path), run("inspect", path, "--json")
    assert shown.exit_code == printed.exit_code == 0
    assert "\x1b" not in shown.stdout + printed.stdout
    assert "\x9b" not in shown.stdout
    assert "[2J[red]" in shown.stdout
    (found,) = json.loads(printed.stdout, parse_constant=pytest.fail)["artifacts"]
    assert found["metadata"]["some.nan"] == "nan"
    assert found["metadata"]["[bold]k"] == {"type": "UINT8", "length": 300}


def test_inspecting_imports_neither_torch_nor_the_hubs_client(base_gguf: Path, base_safetensors: Path) -> None:
    code = (
        "import sys\nfrom tierexport.cli import main\nmain(['inspect', sys.argv[1]], standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    for path in (base_gguf, base_safetensors):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
