"""Codes in databases: each snippet of docs/vectors.md runs as it stands, and finds the neighbours that `Index` finds."""

import _sqlite3
import ctypes
import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import ROOT
from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.metrics.similarity import normalized
from tierexport.vectors.codecs import TOP, Codec
from tierexport.vectors.index import Index
from tierexport.vectors.layouts import as_int8, postgres_bits, postgres_copy, postgres_vectors
from tierexport.vectors.scaling import fit, random_rotation, widening
from tierexport.vectors.storage import to_faiss, write_codec

DOCUMENTS, DIMENSIONS, QUERIES = 400, 61, 6
"""An odd number of dimensions, so that the last byte of bits is filled up."""


def some(count: int, seed: int, dimensions: int = DIMENSIONS) -> Floats:
    found = np.random.default_rng(seed).standard_normal((count, dimensions)) * np.linspace(0.3, 2, dimensions)
    return normalized(found.astype(np.float32)).astype(np.float32)


def snippet(heading: str) -> str:
    """The Python of a section of docs/vectors.md."""
    page = (ROOT / "docs/vectors.md").read_text("utf-8")
    section = re.split(r"^##+ ", page.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    return str(code)


@pytest.fixture(params=["int8", "int4", "int2"])
def names(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the documents' first snippet makes of codes in files, and what the others take as given."""
    monkeypatch.chdir(tmp_path)
    documents = some(DOCUMENTS, 0)
    for name, codec in (
        ("rough", fit(documents, "binary", "rolling")),
        ("fine", fit(documents, request.param, "rolling", per_vector=True)),
    ):
        write_codec(Path(f"{name}.safetensors"), codec, codec.coded(documents))
    found: dict[str, Any] = {"queries": some(QUERIES, 1), "titles": [f"the title of {row}" for row in range(DOCUMENTS)]}
    exec(snippet("In a database"), found)
    return found


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """sqlite3 that loads sqlite-vec, also where Python was compiled without the loading of extensions."""
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        yield
        return
    import sqlite_vec

    class Loading(sqlite3.Connection):
        def enable_load_extension(self, enable: bool) -> None:
            pass

        def load_extension(self, path: str) -> None:
            pass

    library = ctypes.CDLL(_sqlite3.__file__)  # which finds the functions of the library that it is linked with
    start = ctypes.CDLL(f"{sqlite_vec.loadable_path()}.so").sqlite3_vec_init
    library.sqlite3_auto_extension(start)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(path, factory=Loading))
    yield
    library.sqlite3_cancel_auto_extension(start)


def check_search(names: dict[str, Any], search: Callable[..., Any]) -> None:
    """Bits alone, numbers alone, and numbers of what bits find: against `Index`, where ties may come in any order."""
    rough, fine = Index(names["rough"], names["bits"]), Index(names["fine"], names["codes"])
    distances = differing_bits(names["query_bits"], names["bits"])
    (scores,) = fine.scores(names["queries"], quantized=True)
    for row in range(QUERIES):
        asked = names["query_bits"][row], names["query_numbers"][row]
        for candidates, count in ((DOCUMENTS, 10), (10, 10), (40, 10)):
            found = search(*asked, candidates, count)
            assert [title for _, title in found] == [f"the title of {each}" for each, _ in found]
            ids = np.array([each for each, _ in found], np.int64)
            assert len(set(ids.tolist())) == count
            (limit,) = rough.hamming(names["queries"][[row]], candidates)[0][:, -1]
            assert (distances[row, ids] <= limit).all()
            best = np.sort(scores[row, ids])[::-1]
            assert np.allclose(scores[row, ids], best, atol=1e-5)
            nearer = scores[row, distances[row] < limit]
            assert (np.sort(nearer)[::-1][:count] <= best[: len(nearer)] + 1e-5).all()
        assert np.allclose(fine.search(names["queries"][[row]], 10, True)[0][0], scores[row, ids_of(search, *asked)], atol=1e-5)


def ids_of(search: Callable[..., Any], *asked: npt.NDArray[Any]) -> list[int]:
    return [each for each, _ in search(*asked, DOCUMENTS, 10)]


def differing_bits(queries: npt.NDArray[np.uint8], documents: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = np.unpackbits(queries[:, None] ^ documents[None], axis=2).sum(2, dtype=np.int64)
    return found


@pytest.mark.parametrize("database", ["faiss", "usearch", "Qdrant", "LanceDB", "DuckDB"])
def test_a_database_finds_what_index_finds(database: str, names: dict[str, Any]) -> None:
    exec(snippet(database), names)
    check_search(names, names["search"])


@pytest.mark.usefixtures("sqlite")
def test_sqlite_finds_what_index_finds(names: dict[str, Any]) -> None:
    exec(snippet("sqlite-vec"), names)
    check_search(names, names["search"])


# --- layouts that are read by servers, which don't run here


def test_postgres_reads_what_its_format_says(names: dict[str, Any]) -> None:
    exec(snippet("pgvector"), names)
    fields = list(copied(Path("texts.copy").read_bytes()))
    ids = [struct.unpack(">q", each)[0] for each, _, _, _ in fields]
    assert ids == list(range(DOCUMENTS))
    titles = {row: title.decode() for row, (_, title, _, _) in enumerate(fields)}
    bits, numbers = [], []
    for _, _, bit, half in fields:
        assert struct.unpack(">i", bit[:4]) == (DIMENSIONS,)
        bits.append(np.frombuffer(bit[4:], np.uint8))
        numbers.append(struct.unpack(f">HH{DIMENSIONS}e", half)[2:])
        assert half[:4] == struct.pack(">HH", DIMENSIONS, 0)
    check_search(names, exact_search(np.stack(bits), np.array(numbers), titles))


def copied(file: bytes) -> Iterator[list[bytes]]:
    """Rows of a binary COPY file, read as PostgreSQL's documentation of COPY describes it."""
    assert file[:11] == b"PGCOPY\n\377\r\n\0"
    flags, extension = struct.unpack_from(">ii", file, 11)
    assert flags == 0
    place = 19 + extension
    while (count := struct.unpack_from(">h", file, place)[0]) != -1:
        place += 2
        row = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", file, place)
            row.append(file[place + 4 : place + 4 + size])
            place += 4 + size
        yield row
    assert place + 2 == len(file)


def exact_search(bits: npt.NDArray[np.uint8], numbers: npt.NDArray[Any], titles: dict[int, str]) -> Callable[..., Any]:
    """What a database does with a column of bits and one of numbers."""

    def search(query_bits: Any, query_numbers: Any, candidates: int, count: int) -> list[tuple[int, str]]:
        near = np.argsort(differing_bits(query_bits[None], bits)[0], kind="stable")[:candidates]
        asked, held = query_numbers.astype(np.float64), numbers[near].astype(np.float64)
        best = near[np.argsort(-(held @ asked) / np.linalg.norm(held, axis=1), kind="stable")[:count]]
        return [(int(row), titles[row]) for row in best]

    return search


def test_bytes_of_postgres_fields() -> None:
    assert postgres_vectors([[1, -2]]) == [bytes.fromhex("00020000 3f800000 c0000000")]
    assert postgres_vectors(np.array([[1, -2]], np.int8), half=True) == [bytes.fromhex("00020000 3c00 c000")]
    codec = Codec("binary", -np.ones(9, np.float32), np.ones(9, np.float32))
    assert postgres_bits(np.array([[0b10100000, 0b10000000]], np.uint8), codec) == [bytes.fromhex("00000009 a080")]
    assert b"".join(postgres_copy([[b"ab"]])) == b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\0\1\0\0\0\2ab\xff\xff"
    with pytest.raises(VectorError, match="not int4"):
        postgres_bits(np.zeros((1, 1), np.uint8), fit(some(9, 0), "int4", "rolling"))


def test_elasticsearch_reads_what_its_mapping_says(names: dict[str, Any]) -> None:
    exec(snippet("Elasticsearch"), names)
    lines = [json.loads(line) for line in Path("texts.ndjson").read_text("utf-8").splitlines()]
    properties = names["mapping"]["properties"]
    assert properties["bits"]["dims"] % 8 == 0
    ids, documents = [line["index"]["_id"] for line in lines[::2]], lines[1::2]
    assert ids == [str(row) for row in range(DOCUMENTS)]
    bits = np.array([list(bytes.fromhex(each["bits"])) for each in documents], np.uint8)
    signed = [struct.unpack(f"{properties['numbers']['dims']}b", bytes.fromhex(each["numbers"])) for each in documents]
    assert 8 * bits.shape[1] == properties["bits"]["dims"]
    stored = exact_search(bits, np.array(signed), {row: each["title"] for row, each in enumerate(documents)})

    def search(*asked: Any) -> Any:
        body = names["body"](*asked)
        query = np.frombuffer(bytes.fromhex(body["knn"]["query_vector"]), np.uint8)
        rescore = body["rescore"]["query"]["rescore_query"]["script_score"]["script"]["params"]["numbers"]
        return stored(query, np.array(rescore), body["knn"]["k"], body["size"])

    check_search(names, search)


# --- numbers


@pytest.mark.parametrize("level", TOP)
@pytest.mark.parametrize("scaling", ["rolling", "minmax", "clip"])
@pytest.mark.parametrize("rotation", [None, random_rotation(DIMENSIONS)])
def test_numbers_are_in_proportion_to_values(level: str, scaling: str, rotation: Floats | None) -> None:
    documents = some(DOCUMENTS, 0)
    codec = fit(documents, level, scaling, per_vector=True, rotation=rotation)
    codes = codec.coded(documents)
    numbers, values = as_int8(codec, codes), codec.decode(codes)
    values = values if rotation is None else values @ rotation
    assert numbers.dtype == np.int8
    assert np.unique(numbers).size > TOP[level] / 2
    factor = np.abs(values).max() / np.abs(numbers.astype(np.int16)).max()
    assert np.allclose(numbers * factor, values, atol=1e-4 * factor * TOP[level])


def test_int8_is_that_of_sentence_transformers() -> None:
    codec = fit(some(DOCUMENTS, 0), "int8", "rolling", per_vector=True)
    codes = np.arange(DIMENSIONS, dtype=np.uint8)[None] + np.uint8(150)
    assert as_int8(codec, codes).tolist() == [(codes[0].astype(int) - 128).tolist()]


def test_numbers_that_would_not_compare_are_refused() -> None:
    documents = some(DOCUMENTS, 0)
    for codec in (
        fit(documents, "int8", "rolling"),
        fit(documents, "int4", "lloyd", per_vector=True),
        fit(documents, "int4", "rolling", per_vector=True, rotation=widening(DIMENSIONS, 2, False)),
        fit(documents + np.float32(0.5), "int8", "rolling", per_vector=True),
        Codec("int8", np.full(DIMENSIONS, -1, np.float32), np.ones(DIMENSIONS, np.float32)),  # zero's number is 127
    ):
        with pytest.raises(VectorError, match="fit with --per-vector"):
            as_int8(codec, codec.coded(documents))


@pytest.mark.parametrize("level", [level for level in TOP if level != "binary"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_faiss_ranks_by_dot_products_or_distances(level: str, similarity: str) -> None:
    documents, queries = some(DOCUMENTS, 0, 64), some(QUERIES, 1, 64)
    codec = fit(documents, level, "rolling", similarity=similarity)
    codes = codec.coded(documents)
    found = to_faiss(codec, codes).search(queries, 10)[1]
    ranked = replace(codec, similarity="dot") if similarity == "cosine" else codec
    scores, _ = Index(ranked, codes).search(queries, 10)
    (every,) = Index(ranked, codes).scores(queries)
    assert np.allclose(np.take_along_axis(every, found, 1), scores, atol=1e-5)
