"""Codecs: exact packing on any dimension, the same numbers as the libraries that have the level, and search."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.numpy import save_file

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.metrics.similarity import neighbours_kept, normalized
from tierexport.metrics.topk import Indices, greatest
from tierexport.recipe.choices import SCALINGS
from tierexport.vectors.arrays import LARGE
from tierexport.vectors.codecs import CHUNK_ROWS, TOP, Codec
from tierexport.vectors.index import Index
from tierexport.vectors.packing import pack, packed_bytes, unpack
from tierexport.vectors.scaling import TABLES, fit, random_rotation, widening
from tierexport.vectors.storage import read_codec, to_faiss, write_codec
from tierexport.vectors.tables import Table

LEVELS = tuple(TOP)

FITS = [(level, scaling) for level in LEVELS for scaling in SCALINGS if level != "int8" or scaling not in TABLES]
"""Levels with the scalings that they take."""


def some(count: int = 500, dimensions: int = 64, seed: int = 0) -> Floats:
    """Unit vectors whose dimensions differ in spread and mean."""
    generator = np.random.default_rng(seed)
    found = generator.standard_normal((count, dimensions)) * np.linspace(0.2, 2, dimensions) + np.linspace(
        -0.3, 0.3, dimensions
    )
    unit: Floats = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


def codec_of(level: str, dimensions: int) -> Codec:
    return Codec(level, np.full(dimensions, -1, np.float32), np.full(dimensions, 1, np.float32))


# --- packing


def test_bytes_of_2048_dimensions() -> None:
    assert [packed_bytes(level, 2048) for level in LEVELS] == [2048, 1024, 768, 512, 410, 256]
    assert [packed_bytes(level, 1) for level in LEVELS] == [1] * 6


@pytest.mark.parametrize(("level", "bits"), [("int4", 4), ("int3", 3), ("int2", 2)])
@pytest.mark.parametrize("dimensions", [1, 5, 8, 33])
def test_bits_lie_as_numpy_packs_them_from_the_lowest_on(level: str, bits: int, dimensions: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << bits, (7, dimensions), np.uint8)
    each = (numbers[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1).reshape(7, -1)
    assert np.array_equal(pack(numbers, level), np.packbits(each, axis=1, bitorder="little"))


def formula(codec: Codec, vectors: Floats) -> npt.NDArray[np.uint8]:
    """Codes as the documents describe them, in plain numpy."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(1, keepdims=True))
    values = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    if codec.table is not None:
        numbers = (values[:, :, None] > codec.table.borders).sum(2)
    elif codec.level == "binary":
        numbers = values > (codec.low + codec.high) / 2
    else:
        numbers = np.clip((values - codec.low) / codec.cells, 0, TOP[codec.level])
    whole = numbers.astype(np.uint8)
    if codec.level == "trinary":
        whole = np.pad(whole, ((0, 0), (0, -whole.shape[1] % 5)))
        return (whole.reshape(len(whole), -1, 5) @ 3 ** np.arange(5)).astype(np.uint8)
    width = {"int8": 8, "int4": 4, "int3": 3, "int2": 2, "binary": 1}[codec.level]
    bits = (whole[:, :, None] >> np.arange(width) & 1).reshape(len(whole), -1)
    return np.packbits(bits, axis=1, bitorder="big" if codec.level == "binary" else "little")


@pytest.mark.parametrize(("level", "scaling"), FITS)
@pytest.mark.parametrize("dimensions", [384, 61])
def test_compiled_codes_are_the_formulas(level: str, scaling: str, dimensions: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((5000, dimensions), np.float32)
    codec = fit(normalized(vectors[:500]).astype(np.float32), level, scaling)
    vectors[7], vectors[8] = 0, np.where(np.arange(dimensions) % 2, 1e18, -1e-18)
    assert np.array_equal(codec.coded(vectors), formula(codec, vectors))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_packing_round_trips_on_any_dimension(data: st.DataObject) -> None:
    level = data.draw(st.sampled_from(LEVELS))
    dimensions = data.draw(st.integers(1, 50))
    numbers = data.draw(arrays(np.uint8, (data.draw(st.integers(0, 4)), dimensions), elements=st.integers(0, TOP[level])))
    codes = pack(numbers, level)
    assert codes.dtype == np.uint8
    assert codes.shape == (len(numbers), packed_bytes(level, dimensions))
    assert np.array_equal(unpack(codes, level, dimensions), numbers)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_value_wraps_around(data: st.DataObject) -> None:
    """Beyond the range lies the outermost cell, however far, and a cell's middle comes back as itself."""
    level = data.draw(st.sampled_from(LEVELS))
    rotated = data.draw(st.booleans())
    values = data.draw(arrays(np.float32, (3, 12), elements=st.floats(allow_nan=False, width=32)))
    codec = codec_of(level, 12)
    if rotated:
        codec = Codec(level, codec.low, codec.high, rotation=random_rotation(12))
    assert np.isfinite(codec.prepared(values)).all()  # an infinity less another one would be none
    assert np.array_equal(codec.encode(values), codec.encode(np.clip(values, -LARGE, LARGE)))
    if not rotated:
        decoded = codec.decode(codec.encode(values))
        assert (decoded[values >= 1] > 0).all()
        assert (decoded[values <= -1] < 0).all()
        inside = np.abs(values) <= 1
        assert (np.abs(decoded - values)[inside] <= codec.cells[0] / 2 + 1e-6).all()
        assert np.array_equal(codec.encode(decoded), codec.encode(values))


def test_what_is_no_number_is_refused_and_infinity_is_far() -> None:
    for level in LEVELS:
        codec = codec_of(level, 3)
        with pytest.raises(VectorError, match="vector 1 holds NaN"):
            codec.encode(np.array([[0, 0, 0], [0, np.nan, 0]], np.float32))
        ends = codec.numbers(np.array([[np.inf, -np.inf, 0]], np.float32))[0]
        assert ends[:2].tolist() == [TOP[level], 0]
        for per_vector in (False, True):
            zero = Codec(level, codec.low, codec.high, per_vector).decode(codec.encode(np.zeros((1, 3), np.float32)))
            assert np.isfinite(zero).all()


def test_codes_and_vectors_of_another_shape_are_refused() -> None:
    codec = codec_of("trinary", 7)
    with pytest.raises(VectorError, match="7 dimensions"):
        codec.encode(np.zeros((1, 8), np.float32))
    with pytest.raises(VectorError, match="takes 2 bytes"):
        codec.decode(np.zeros((1, 3), np.uint8))
    with pytest.raises(VectorError, match="the file is damaged"):
        codec.decode(np.full((1, 2), 243, np.uint8))
    with pytest.raises(VectorError, match="is no level"):
        codec_of("int5", 4)


# --- the libraries that have the level


@pytest.mark.parametrize(("level", "theirs", "shift"), [("int8", "uint8", 0), ("int8", "int8", 128), ("binary", "ubinary", 0)])
def test_the_bits_of_sentence_transformers(level: str, theirs: str, shift: int) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    vectors = some(dimensions=61)
    vectors[0, :5] = 0
    ranges = np.stack([vectors[:300].min(0), vectors[:300].max(0)])  # the rest goes beyond
    codec = Codec(level, *((ranges) if level == "int8" else (-np.ones(61, np.float32), np.ones(61, np.float32))))
    expected = quantize_embeddings(vectors, theirs, ranges=ranges)
    assert np.array_equal(codec.encode(vectors), (expected.astype(np.int16) + shift).astype(np.uint8))


@pytest.mark.parametrize("level", ["int8", "int4"])
def test_the_bits_and_values_of_faiss(level: str) -> None:
    vectors = some(dimensions=64)
    codec = fit(vectors[:300], level, "minmax")
    index = to_faiss(codec, codec.encode(vectors))
    native = faiss.IndexScalarQuantizer(64, index.sq.qtype, faiss.METRIC_INNER_PRODUCT)
    native.train(vectors[:300])
    native.add(vectors)
    ours = codec.numbers(vectors).astype(np.int16)
    theirs = unpack(faiss.vector_to_array(native.codes).reshape(len(vectors), -1), level, 64)
    assert np.abs(ours - theirs).max() <= 1  # faiss multiplies where we divide: a value on a border may fall either way
    assert (ours != theirs).mean() < 1e-3
    assert np.allclose(index.reconstruct_n(0, len(vectors)), codec.decode(codec.encode(vectors)), atol=1e-5)


@pytest.mark.parametrize("level", ["int8", "int4", "int3", "int2", "trinary"])
def test_faiss_gets_many_codes_without_a_second_copy(level: str) -> None:
    """Its own memory is not among what is traced."""
    codec = codec_of(level, 24)

    def peak(count: int) -> int:
        vectors = np.random.default_rng(0).uniform(-1, 1, (count, 24)).astype(np.float32)
        codes = codec.encode(vectors)
        tracemalloc.start()
        index = to_faiss(codec, codes)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.allclose(index.reconstruct_n(0, count), codec.decode(codes), atol=1e-5)
        return most

    peak(0)
    peak(1)  # what is compiled by then is not counted
    assert peak(40_000) < 1.5 * peak(10_000)


def test_binary_in_faiss_is_hamming() -> None:
    vectors = some()
    codec = fit(vectors, "binary", "rolling")
    codes = codec.encode(vectors)
    distances, rows = to_faiss(codec, codes).search(codes[:5], 3)
    bits = np.unpackbits(codes, axis=1)
    exact = (bits[:5, None] != bits[None]).sum(2)
    assert np.array_equal(np.sort(exact, 1)[:, :3], distances)
    assert rows[:, 0].tolist() == list(range(5))


def test_faiss_lacks_tables_and_odd_nibbles() -> None:
    with pytest.raises(VectorError, match="an odd number"):
        to_faiss(codec_of("int4", 5), np.zeros((1, 3), np.uint8))
    with pytest.raises(VectorError, match="cells of equal width alone"):
        to_faiss(codec := fit(some(), "int4", "lloyd"), codec.encode(some()))


# --- bounds


@pytest.mark.parametrize(("level", "scaling"), FITS)
@pytest.mark.parametrize("per_vector", [False, True])
def test_more_levels_keep_more(level: str, scaling: str, per_vector: bool) -> None:
    vectors = some(1000)
    codec = fit(vectors[:500], level, scaling, per_vector)
    back = codec.decode(codec.encode(vectors[500:]))
    cosines = (back * vectors[500:]).sum(1) / np.linalg.norm(back, axis=1)
    least = {"int8": 0.999, "int4": 0.96, "int3": 0.94, "int2": 0.88, "trinary": 0.83, "binary": 0.7}[level]
    if scaling == "minmax":
        least = {"int2": 0.75, "trinary": 0.6}.get(level, least)
    assert cosines.mean() > least


def test_clipping_has_the_least_error_on_what_it_saw() -> None:
    vectors = some(1000)
    for level in LEVELS:
        errors = {}
        for scaling in [scaling for each, scaling in FITS if each == level]:
            codec = fit(vectors, level, scaling)
            errors[scaling] = float(np.square(codec.decode(codec.encode(vectors)) - vectors).mean())
        assert errors["clip"] <= errors["rolling"] + 1e-9
        assert errors.get("lloyd", 0) < min(errors["clip"], errors.get("quantile", 1)) + 1e-9
    assert errors["clip"] < errors["minmax"]


@pytest.mark.parametrize(
    ("level", "centers", "borders"),
    [
        ("binary", [0.7980], [0]),
        ("trinary", [0, 1.224], [0.6120]),
        ("int2", [0.4528, 1.510], [0, 0.9816]),
        ("int3", [0.2451, 0.7560, 1.344, 2.152], [0, 0.5006, 1.050, 1.748]),
    ],
)
def test_lloyds_cells_of_a_normal_distribution_are_those_that_max_published(
    level: str, centers: list[float], borders: list[float]
) -> None:
    values = np.random.default_rng(0).standard_normal((200_000, 2)).astype(np.float32) * np.array([1, 3], np.float32)
    table = fit(values, level, "lloyd", similarity="dot").table
    assert table is not None
    for row, size in zip((0, 1), (1, 3), strict=True):
        assert np.allclose(table.centers[row, -len(centers) :] / size, centers, atol=0.03)
        assert np.allclose(table.borders[row, -len(borders) :] / size, borders, atol=0.03)


@pytest.mark.parametrize("level", ["binary", "trinary", "int2", "int3", "int4"])
def test_quantiles_fill_every_cell_alike_and_stand_for_their_means(level: str) -> None:
    values = np.random.default_rng(0).gamma(2, size=(4800, 3)).astype(np.float32)
    codec = fit(values, level, "quantile", similarity="dot")
    numbers = codec.numbers(values)
    for column in range(3):
        counts = np.bincount(numbers[:, column], minlength=TOP[level] + 1)
        assert np.abs(counts - 4800 / len(counts)).max() <= 1
        means = [values[numbers[:, column] == cell, column].mean() for cell in range(len(counts))]
        assert np.allclose(
            codec.values(np.arange(len(counts), dtype=np.uint8)[:, None].repeat(3, 1))[:, column], means, atol=1e-4
        )


def test_a_table_takes_enough_vectors_for_its_cells() -> None:
    for scaling in TABLES:
        with pytest.raises(VectorError, match="int8 has too many cells"):
            fit(some(), "int8", scaling)


def test_dimensions_without_a_range_are_their_value() -> None:
    vectors = some(50, 8)
    vectors[:, 3] = 0.25
    for level, scaling in [("int8", "minmax"), ("int4", "minmax"), *((level, each) for level in LEVELS[1:] for each in TABLES)]:
        codec = fit(vectors, level, scaling)
        assert np.allclose(codec.decode(codec.encode(vectors))[:, 3], 0.25)


@pytest.mark.parametrize("wrong", [np.zeros((0, 4)), np.ones((1, 4)), np.full((2, 4), np.inf)])
def test_nothing_to_fit_on(wrong: Floats) -> None:
    with pytest.raises(VectorError):
        fit(wrong.astype(np.float32), "int8", "rolling")


@pytest.mark.parametrize("count", [257, 300, 384, 513, 1025])
def test_how_many_vectors_there_are_does_not_move_the_bounds(count: int) -> None:
    some = np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32)
    even, odd = fit(some[:256], "int4", "rolling"), fit(some, "int4", "rolling")
    assert (odd.high - odd.low).mean() == pytest.approx((even.high - even.low).mean(), rel=0.05)


@pytest.mark.parametrize(
    "rotation", [None, random_rotation(12), widening(12, 2, False)], ids=["as they are", "turned", "wider"]
)
def test_codes_of_many_vectors_are_those_of_each(rotation: Floats | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any length, and whichever of the parts that are coded together they are in."""
    monkeypatch.setattr("tierexport.vectors.codecs.CHUNK_ROWS", 3)
    some = np.random.default_rng(0).standard_normal((7, 12)).astype(np.float32) * 3
    unit = normalized(some).astype(np.float32)
    codec = fit(unit, "int4", "rolling", rotation=rotation)
    codes = codec.coded(some)
    assert np.array_equal(codes, codec.encode(unit))
    if rotation is None:
        assert np.array_equal(codec.restored(some), codec.decode(codes))
    else:  # products of fewer rows may round otherwise
        assert np.allclose(codec.restored(some), codec.decode(codes), atol=1e-6)


@pytest.mark.parametrize("level", ["binary", "trinary"])
@pytest.mark.parametrize("scaling", ["rolling", "minmax", "clip"])
def test_ranges_lie_around_means_that_are_far_from_zero(level: str, scaling: str) -> None:
    spread = np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float32)
    codec = fit(spread + np.array([0, 0.2, 3, -3], np.float32), level, scaling, similarity="dot")
    assert np.allclose((codec.low + codec.high) / 2, [0, 0, 3, -3], atol=0.2)
    assert np.allclose((codec.high - codec.low)[2:], (codec.high - codec.low)[0], rtol=0.3)


@pytest.mark.parametrize("scaling", ["rolling", "clip", "quantile", "lloyd"])
def test_vectors_with_an_offset_keep_as_many_neighbours_as_without(scaling: str) -> None:
    def kept(vectors: Floats) -> float:
        found = fit(vectors[:500], "binary", scaling).restored(vectors)
        return float(neighbours_kept(vectors, found).mean())

    centred = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    plain, offset = (normalized(centred + np.float32(more)).astype(np.float32) for more in (0, 3))
    assert kept(offset) > kept(plain) - 0.05
    assert neighbours_kept(offset, np.sign(offset)).mean() < kept(offset) / 5  # what zero as the threshold leaves


# --- search and files


@pytest.mark.parametrize(("level", "scaling"), [each for each in FITS if each[1] in ("clip", "lloyd")])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("rotation", [None, widening(33, 1, True), widening(33, 2, False), widening(33, 3, True)])
def test_search_finds_what_decoding_everything_finds(
    level: str, scaling: str, quantized: bool, rotation: Floats | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tierexport.vectors import index as module

    monkeypatch.setattr(module, "CHUNK", 64)
    vectors, queries = some(300, 33), some(7, 33, seed=1)
    codec = fit(vectors, level, scaling, rotation=rotation)
    codes = codec.encode(vectors)
    assert codec.dimensions == 33
    scores, rows = Index(codec, codes).search(queries, 10, quantized)
    asked = codec.decode(codec.encode(queries)) if quantized else queries
    back = codec.decode(codes)
    exact = (asked @ back.T) / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(back, axis=1)
    assert np.allclose(scores, -np.sort(-exact, 1)[:, :10], atol=1e-5)
    assert np.allclose(np.take_along_axis(exact, rows, 1), scores, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 30))
def test_ties_go_to_the_first(seed: int, count: int, columns: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (3, columns)).astype(np.float32)
    assert np.array_equal(greatest(scores, count), np.argsort(-scores, 1, kind="stable")[:, :count])


def test_the_length_of_a_query_does_not_matter() -> None:
    vectors, queries = some(300, 32), some(7, 32, seed=1)
    index = Index(codec := fit(vectors, "int4", "rolling"), codec.encode(vectors))
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    for quantized in (False, True):
        assert np.array_equal(index.search(40 * unit, 5, quantized)[1], index.search(unit, 5, quantized)[1])


def test_twice_as_wide_keeps_more() -> None:
    vectors, queries = some(2000, 64), some(50, 64, seed=1)
    best = np.argsort(-(queries @ vectors.T), 1)[:, :10]
    kept = []
    for times in (1, 2, 4):
        codec = fit(vectors, "binary", "rolling", rotation=widening(64, times, False))
        assert codec.bytes == 8 * times
        back = codec.restored(vectors)
        assert back.shape == vectors.shape
        found = Index(codec, codec.encode(vectors)).search(queries, 10)[1]
        kept.append(np.mean([len(set(a) & set(b)) for a, b in zip(best, found, strict=True)]))
    assert kept[0] < kept[1] < kept[2]


def test_a_rotation_of_another_width_is_refused() -> None:
    with pytest.raises(VectorError, match="shape"):
        Codec("int8", np.zeros(4, np.float32), np.ones(4, np.float32), rotation=np.eye(3, dtype=np.float32))
    with pytest.raises(VectorError, match=r"a probe of shape \(3,\)"):
        Codec("int8", np.zeros(4, np.float32), np.ones(4, np.float32), probe=np.ones(3, np.float32))


def test_rescoring_brings_binary_nearer_to_the_unquantized() -> None:
    vectors, queries = some(2000, 64), some(50, 64, seed=1)
    codec = fit(vectors, "binary", "rolling")
    index = Index(codec, codec.encode(vectors))
    best = np.argsort(-(queries @ vectors.T), 1)[:, :10]

    def kept(rows: Indices) -> float:
        return float(np.mean([len(set(one) & set(other)) for one, other in zip(rows.tolist(), best.tolist(), strict=True)]))

    assert kept(index.hamming(queries, 10)[1]) < kept(index.hamming(queries, 10, rescored=4)[1]) <= 10
    assert np.array_equal(index.hamming(queries, 10, rescored=200)[1], index.search(queries, 10)[1])
    with pytest.raises(VectorError, match="can't find 0"):
        index.search(queries, 0)


@pytest.mark.parametrize(("level", "scaling"), [each for each in FITS if each[1] in ("rolling", "quantile")])
def test_files_come_back(level: str, scaling: str, tmp_path: Path) -> None:
    vectors = some()
    codec = replace(fit(vectors, level, scaling, per_vector=True, rotation=random_rotation(64)), probe=vectors[7])
    codes = codec.encode(vectors)
    write_codec(tmp_path / "codec.safetensors", codec, codes)
    again, held = read_codec(tmp_path / "codec.safetensors")
    assert held is not None
    assert isinstance(held, np.memmap)
    assert np.array_equal(held, codes)
    assert np.array_equal(again.decode(held), codec.decode(codes))
    assert again.probe is not None
    assert np.array_equal(again.probe, vectors[7])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "codec.safetensors").read_bytes()[:200])
    for wrong in ("cut.safetensors", "missing.safetensors"):
        with pytest.raises(VectorError, match="is no codec that tierexport wrote"):
            read_codec(tmp_path / wrong)


def test_codes_that_are_mapped_are_searched_as_those_in_memory(tmp_path: Path) -> None:
    vectors, queries = some(300), some(7, seed=1)
    for level in ("int8", "int2", "binary"):
        codec = fit(vectors, level, "rolling")
        write_codec(tmp_path / level, codec, codec.encode(vectors))
        _, held = read_codec(tmp_path / level)
        assert isinstance(held, np.memmap)
        assert np.array_equal(
            Index(codec, held).search(queries, 9)[1], Index(codec, codec.encode(vectors)).search(queries, 9)[1]
        )
        write_codec(tmp_path / level, codec, codec.encode(vectors[:9]))  # takes the place of a file that is still read
        assert np.array_equal(held, codec.encode(vectors))
    write_codec(tmp_path / "none", codec, codec.encode(vectors[:0]))
    _, held = read_codec(tmp_path / "none")
    assert held is not None
    assert held.shape == (0, 8)


def test_codecs_of_earlier_versions_open_and_later_ones_are_refused(tmp_path: Path) -> None:
    held = {"low": np.full(4, -1, np.float32), "high": np.full(4, 1, np.float32)}
    told = {"version": "1", "level": "int4", "per_vector": False, "asymmetric": False}
    save_file(held, tmp_path / "first", {"tierexport.codec": json.dumps(told)})
    codec, _ = read_codec(tmp_path / "first")
    assert np.allclose(
        codec.decode(np.array([[0x10, 0xE7]], np.uint8)), (np.array([[0, 1, 7, 14]]) + 0.5) * 2 / 15 - 1, atol=1e-6
    )
    write_codec(tmp_path / "again", codec)
    assert '\\"version\\": \\"1\\"' in (tmp_path / "again").read_bytes().decode("latin")  # what could read it still can
    save_file(held, tmp_path / "later", {"tierexport.codec": json.dumps(told | {"version": "3"})})
    with pytest.raises(VectorError, match="1 and 2 are read: update tierexport"):
        read_codec(tmp_path / "later")


def spoilt(path: Path, settings: dict[str, object] | str | None = None, **arrays: npt.NDArray[Any]) -> Path:
    """A codec's file with some of it replaced."""
    with safe_open(path, framework="np") as file:
        told = json.loads(file.metadata()["tierexport.codec"])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    text = settings if isinstance(settings, str) else json.dumps(told | (settings or {}))
    save_file(held | arrays, path, {"tierexport.codec": text})
    return path


@pytest.mark.parametrize(
    ("settings", "arrays", "told"),
    [
        (None, {"high": np.full(64, 3e38, np.float32)}, "lie within 1e"),
        (None, {"low": np.full(64, 2, np.float32), "high": np.full(64, 1, np.float32)}, "have to go upwards"),
        (None, {"low": np.zeros(64, np.float64)}, "have to be float32"),
        (None, {"low": np.zeros(64, np.int8)}, "have to be float32"),
        (None, {"rotation": np.zeros((64, 64), np.float32)}, "are not orthonormal"),
        (None, {"rotation": np.full((64, 64), 1e38, np.float32)}, "are not orthonormal"),
        (None, {"codes": np.zeros((3, 1), np.uint8)}, "int8 takes 64 bytes"),
        (None, {"codes": np.zeros((3, 64), np.float32)}, "int8 takes 64 bytes"),
        ({"per_vector": "false"}, {}, "have to be true or false"),
        ({"level": ["int8"]}, {}, "is no codec"),
        ("[" * 100_000, {}, "is no codec"),
        ("[1]", {}, "is no codec"),
    ],
)
def test_a_file_that_makes_no_codec_is_refused(
    settings: dict[str, object] | str | None, arrays: dict[str, npt.NDArray[Any]], told: str, tmp_path: Path
) -> None:
    write_codec(tmp_path / "codec", fit(some(), "int8", "rolling"))
    read_codec(spoilt(tmp_path / "codec"))
    with pytest.raises(VectorError, match=told):
        read_codec(spoilt(tmp_path / "codec", settings, **arrays))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"low": np.zeros(0, np.float32), "high": np.zeros(0, np.float32)}, "one pair for each dimension"),
        ({"low": np.full(64, -np.inf, np.float32)}, "float32 and finite"),
        ({"rotation": np.full((64, 64), np.nan, np.float32)}, "float32 and finite"),
        ({"probe": np.full(64, np.nan, np.float32)}, "float32 and finite"),
        ({"table": Table(np.zeros((64, 254), np.float32), np.zeros((64, 256), np.float32))}, "255\\) borders"),
        ({"table": Table(np.zeros((64, 255), np.float32), -np.arange(64 * 256, dtype=np.float32).reshape(64, 256))}, "upwards"),
        ({"table": Table(np.zeros((64, 255), np.float32), np.full((64, 256), np.nan, np.float32))}, "float32 and finite"),
    ],
)
def test_a_codec_of_no_numbers_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(VectorError, match=told):
        replace(fit(some(), "int8", "rolling"), **changed)


@pytest.mark.parametrize("codes", [np.zeros((3, 1), np.uint8), np.zeros((3, 64), np.float32), np.zeros((3, 64), np.int64)])
def test_codes_of_another_shape_or_type_are_refused(codes: npt.NDArray[Any]) -> None:
    codec = fit(some(), "int8", "rolling")
    with pytest.raises(VectorError, match="int8 takes 64 bytes for 64 dimensions"):
        Index(codec, codes)
    with pytest.raises(VectorError, match="int8 takes 64 bytes for 64 dimensions"):
        to_faiss(codec, codes)  # faiss itself reads beyond the end


def test_infinities_take_the_outermost_cell_everywhere() -> None:
    vectors = some()
    codec = fit(vectors, "int8", "rolling")
    far = np.zeros((2, 64), np.float32)
    far[0, 0], far[1, 1] = np.inf, -np.inf
    one = np.diag(np.array([1, -1] + [0] * 62, np.float32))[:2]
    assert np.array_equal(codec.coded(far), codec.coded(one))
    index = Index(codec, codec.coded(vectors))
    assert np.array_equal(index.search(far, 3)[1], index.search(one, 3)[1])
    assert np.array_equal(index.search(vectors[:4] * np.float32(1e25), 3)[1], index.search(vectors[:4], 3)[1])
    many = np.zeros((CHUNK_ROWS + 9, 64), np.float32)
    many[CHUNK_ROWS + 5, 3] = np.nan
    with pytest.raises(VectorError, match=f"vector {CHUNK_ROWS + 5} holds NaN"):
        codec.coded(many)


# --- the first dimensions


@pytest.mark.parametrize(("level", "scaling"), [each for each in FITS if each[1] in ("rolling", "lloyd")])
@pytest.mark.parametrize("times", [1, 2])
def test_the_first_dimensions_are_coded_as_vectors_of_so_many(level: str, scaling: str, times: int, tmp_path: Path) -> None:
    vectors, queries = some(300, 33), some(7, 33, seed=1)
    first = normalized(vectors[:, :20]).astype(np.float32)
    rotation = widening(20, times, False)
    cut, whole = fit(vectors, level, scaling, rotation=rotation, dimensions=20), fit(first, level, scaling, rotation=rotation)
    assert (cut.dimensions, cut.kept, cut.bytes) == (33, 20, packed_bytes(level, 20 * times))
    codes = cut.coded(vectors)
    assert np.array_equal(codes, whole.coded(first))
    assert np.array_equal(codes, cut.encode(vectors))
    assert np.array_equal(cut.decode(codes), np.pad(whole.decode(codes), ((0, 0), (0, 13))))
    for quantized in (False, True):
        found, expected = (
            Index(codec, codes).search(asked, 10, quantized)
            for codec, asked in ((cut, queries), (whole, normalized(queries[:, :20]).astype(np.float32)))
        )
        assert np.array_equal(found[1], expected[1])
        assert np.allclose(found[0], expected[0], atol=1e-6)
    write_codec(tmp_path / "cut", cut, codes)
    again, _ = read_codec(tmp_path / "cut")
    assert np.array_equal(again.encode(vectors), codes)


def test_dot_products_of_the_first_dimensions_keep_their_lengths() -> None:
    vectors, queries = 5 * some(300, 33), 3 * some(7, 33, seed=1)
    codec = fit(vectors, "int8", "minmax", similarity="dot", dimensions=20)
    scores, rows = Index(codec, codec.encode(vectors)).search(queries, 5)
    exact = queries[:, :20] @ vectors[:, :20].T
    assert np.allclose(scores, np.take_along_axis(exact, rows, 1), atol=0.2)


def test_dimensions_that_are_not_there(tmp_path: Path) -> None:
    for dimensions in (0, 65):
        with pytest.raises(VectorError, match=f"64 dimensions have no first {dimensions}"):
            fit(some(), "int8", "rolling", dimensions=dimensions)
    with pytest.raises(VectorError, match="the first 64 of 64 dimensions are no cut"):
        replace(fit(some(), "int8", "rolling"), cut_from=64)
    write_codec(path := tmp_path / "codec", fit(some(), "int8", "rolling", dimensions=8))
    with pytest.raises(VectorError, match="has to be a number of dimensions"):
        read_codec(spoilt(path, {"cut_from": "64"}))


# --- what users have vectors in


def test_vectors_of_any_kind_have_the_same_codes() -> None:
    vectors = some().astype(np.float16)  # whose numbers float32 and float64 hold exactly
    codec = fit(vectors.astype(np.float32), "int4", "rolling")
    codes = codec.coded(vectors.astype(np.float32))
    tensor = torch.from_numpy(vectors)
    given: list[Any] = [
        vectors,
        vectors.astype(np.float64),
        vectors.tolist(),
        tensor,
        tensor.double().requires_grad_(),
        list(tensor),
    ]
    index = Index(codec, codes)
    expected = index.search(vectors[:5].astype(np.float32), 3)
    for each in [*given, list(vectors)]:
        assert np.array_equal(codec.coded(each), codes)
        assert np.array_equal(codec.encode(each), codec.encode(vectors.astype(np.float32)))
        assert np.array_equal(codec.restored(each), codec.decode(codes))
        scores, rows = index.search(each[:5], 3)
        assert np.array_equal(scores, expected[0])
        assert np.array_equal(rows, expected[1])
    narrow = tensor.bfloat16()
    assert np.array_equal(codec.coded(narrow), codec.coded(narrow.float().numpy()))
    assert np.array_equal(codec.coded(list(narrow)), codec.coded(narrow.float().numpy()))
    assert np.array_equal(codec.decode(torch.from_numpy(codes)), codec.decode(codes))
    assert np.array_equal(Index(codec, torch.from_numpy(codes)).search(vectors[:5], 3)[1], expected[1])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((3, 64), np.int8), "of type int8: floating point numbers are taken"),
        (torch.zeros(3, 64, dtype=torch.int32), "of type int32: floating"),
        (np.zeros((3, 64), np.complex64), "of type complex64: floating"),
        ([["a"] * 64], "of type <U1: floating"),
        ([[1.0] * 64, [1.0] * 63], "vectors of type list make no array of numbers"),
        (torch.zeros(3, 64).to_sparse(), "vectors of type Tensor make no array"),
        (np.zeros(64, np.float32), r"of shape \(64,\), where the codec has 64 dimensions"),
        (torch.zeros(3, 63), r"of shape \(3, 63\)"),
    ],
)
def test_what_holds_no_vectors_is_refused_in_words(given: Any, told: str) -> None:
    codec = fit(some(), "int4", "rolling")
    index = Index(codec, codec.encode(some()))
    for asked in (codec.encode, codec.coded, lambda each: index.search(each, 3)):
        with pytest.raises(VectorError, match=told):
            asked(given)


def test_codes_that_are_none_are_refused_in_words() -> None:
    codec = fit(some(), "int4", "rolling")
    for wrong, told in (
        ([[1, 2], [3]], "make no array"),
        (torch.zeros(3, 32), "type float32: int4 takes 32"),
        ([[1] * 32], "int64"),
    ):
        for asked in (codec.decode, lambda each: Index(codec, each)):
            with pytest.raises(VectorError, match=told):
                asked(wrong)
