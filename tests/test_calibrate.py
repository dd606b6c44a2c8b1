"""Importance agrees with an independent computation, and calibration input is checked."""

import collections
import gzip
import itertools
import json
import lzma
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from conftest import RECIPES, Built, build, run
from numpy_bert import NumpyBert
from tierexport.base.errors import CalibrationError, DataError
from tierexport.base.records import Source, Text
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import builtin_languages, calibration_texts, every_text, screen
from tierexport.datasets.textfiles import BUILTIN
from tierexport.formats.gguf.format import Gguf
from tierexport.formats.gguf.imatrix import check_fits, read_imatrix
from tierexport.model.batches import token_ids, within
from tierexport.model.encoder import open_model
from tierexport.model.languages import NAMES, languages_of
from tierexport.model.source import open_source
from tierexport.quantize.floor import floored
from tierexport.quantize.importance import measure_importance


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-4), (False, 0.03)])
def test_importance_equals_an_independent_computation(
    exact: bool, tolerance: float, minilm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over queries and passages, one of them cut at 256 tokens, in padded batches here, singly there; with products in fp32,
    and as a build takes them, in bf16 where the CPU multiplies it.
    """
    if exact:
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    texts = calibration_texts("builtin", 30)
    texts.append(Text("a very long passage " * 200, "passage"))
    model = open_model(minilm)
    measured = measure_importance(model, texts, "test")
    independent: dict[str, Any] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    bert = NumpyBert(minilm.path, layers=6, heads=12)
    for ids in token_ids(model, [text.text for text in texts]):
        for name, x in bert.inputs(ids):
            independent[f"{name}.weight"] += (x**2).sum(0)
            counts[f"{name}.weight"] += len(x)
    assert len(independent) == 36
    assert max(counts.values()) > 256
    for name, sums in independent.items():
        assert measured.counts[name] == counts[name]
        np.testing.assert_allclose(measured.sums[name], sums, rtol=tolerance)
    assert torch.get_float32_matmul_precision() == "highest"


def test_prompts_are_put_before_texts(minilm: Source) -> None:
    """With a prompt, more tokens are seen, and the kind of a text chooses the prompt."""
    model = open_model(minilm)
    texts = [Text("what is a quark", "query"), Text("Quarks are particles.", "passage")]
    plain = measure_importance(model, texts, "test").counts["encoder.layer.0.output.dense.weight"]
    model.prompts.update(query="find: ", document="")
    prompted = measure_importance(model, texts, "test").counts["encoder.layer.0.output.dense.weight"]
    assert prompted == plain + 2  # "find" and ":", once


def test_the_imatrix_is_in_llama_cpps_format(three_tier: Built, minilm: Source) -> None:
    reader = gguf.GGUFReader(three_tier.folder / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == len(within(open_model(minilm), every_text("builtin"), 24_576))
    assert {"imatrix.datasets", "imatrix.chunk_size"} <= set(reader.fields)
    named = {tensor.name: tensor for tensor in reader.tensors}
    assert len(named) == 2 * 36
    assert list(named["blk.2.ffn_down.weight.in_sum2"].shape) == [1536, 1]
    assert list(named["blk.2.ffn_down.weight.counts"].shape) == [1, 1]
    assert float(named["blk.2.ffn_down.weight.counts"].data[0, 0]) > 10_000


def test_floor_lifts_zeros_and_nothing_else() -> None:
    means = np.array([0, 1e-30, 2, 4], np.float32)
    lifted = floored(means)
    assert lifted[2:].tolist() == [2, 4]
    assert (lifted[:2] > 0).all()
    assert (floored(lifted) == lifted).all()
    assert floored(np.zeros(4, np.float32)).tolist() == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def builtin() -> list[dict[str, str]]:
    """Every built-in text as its file has it."""
    files = sorted((BUILTIN / "calibration").glob("*.jsonl"))
    return [{**json.loads(line), "file": file.stem} for file in files for line in file.read_text("utf-8").splitlines()]


def shingles(text: str) -> set[str]:
    """The runs of twelve letters and digits of a text, or all of them where it is shorter."""
    plain = re.sub(r"\W", "", text.casefold())
    return {plain[start : start + 12] for start in range(max(len(plain) - 11, 1))}


def test_the_built_in_texts_are_many_and_varied(builtin: list[dict[str, str]]) -> None:
    assert len(builtin) >= 2000
    assert len({text["genre"] for text in builtin}) >= 30
    assert len({text["language"] for text in builtin} - {"en"}) >= 25
    assert NAMES.keys() == set(builtin_languages())
    assert all(text["language"] == text["file"] and text["genre"] and text["text"].strip() for text in builtin)
    assert 0.2 < sum(text["kind"] == "query" for text in builtin) / len(builtin) < 0.5
    english = "".join(text["text"] for text in builtin if text["language"] == "en")
    assert sum(each.isalpha() and not each.isascii() for each in english) < 0.002 * len(english)
    for language in builtin_languages():
        assert len({text["genre"] for text in builtin if text["language"] == language}) >= 15, language


def test_no_built_in_text_is_nearly_another(builtin: list[dict[str, str]]) -> None:
    """No two share half of what the shorter one has, and none has much of the screen's or of the shipped retrieval set's."""
    sentences = [text for language in NAMES for text in screen(language)]
    judged = [*sentences, *read_beir(BUILTIN / "retrieval").documents, *read_beir(BUILTIN / "retrieval").queries]
    texts = [shingles(text["text"]) for text in builtin] + [shingles(text) for text in judged]
    holders: dict[str, list[int]] = {}
    for number, parts in enumerate(texts):
        for part in parts:
            holders.setdefault(part, []).append(number)
    shared = collections.Counter(pair for each in holders.values() for pair in itertools.combinations(each, 2))
    alike = [(one, other) for (one, other), count in shared.items() if count > 0.5 * min(len(texts[one]), len(texts[other]))]
    assert [builtin[one]["text"][:80] for one, _ in alike if one < len(builtin)] == []
    assert len(screen()) == 143
    assert {len(screen(each)) for each in NAMES if each != "en"} == {14}
    assert len(sentences) == len(set(sentences)) == 143 + 14 * (len(NAMES) - 1)


def test_english_alone_is_worth_a_hundred_thousand_tokens(minilm: Source) -> None:
    model = open_model(minilm)
    texts = every_text("builtin", languages_of(minilm))
    assert {text.language for text in texts} == {"en"}
    assert sum(map(len, token_ids(model, [text.text for text in texts]))) >= 98_304


def test_a_model_gets_its_own_languages(tiny_model: Path, tmp_path: Path) -> None:
    """Those its card names, all where it names none and has a vocabulary of many, and equal shares of them."""
    source = open_source(str(tiny_model))
    assert languages_of(replace(source, languages=("de", "fr-CA", "en"))) == ["de", "en", "fr"]
    assert languages_of(replace(source, languages=("English", "deu", "pt_BR"))) == ["de", "en", "pt"]
    assert languages_of(replace(source, languages=("multilingual",))) == builtin_languages()
    assert languages_of(replace(source, languages=())) == ["en"]
    shutil.copytree(tiny_model, tmp_path / "many")
    config = tmp_path / "many" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 250_002}))
    assert languages_of(replace(source, path=tmp_path / "many", languages=())) == builtin_languages()
    model, texts = open_model(source), every_text("builtin", builtin_languages())
    chosen = within(model, texts, 60_000)
    lengths = collections.Counter[str]()
    for text, ids in zip(chosen, token_ids(model, [text.text for text in chosen]), strict=True):
        lengths[text.language] += len(ids)
    assert lengths.keys() == set(builtin_languages())
    assert sum(lengths.values()) == pytest.approx(60_000, rel=0.1)
    del lengths["th"]  # without blanks between words, an English vocabulary takes a sentence for one unknown word
    assert max(lengths.values()) < 3 * min(lengths.values())


def _beir(folder: Path, write: Callable[[Path], Any], suffix: str) -> Path:
    folder.mkdir()
    with write(folder / f"corpus.jsonl{suffix}") as file:
        file.writelines(json.dumps({"_id": str(n), "title": f"T{n}", "text": f"passage {n}"}) + "\n" for n in range(9))
    with write(folder / f"queries.jsonl{suffix}") as file:
        file.writelines(json.dumps({"_id": str(n), "text": f"query {n}"}) + "\n" for n in range(5))
    return folder


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("", lambda path: path.open("w")),
        (".gz", lambda path: gzip.open(path, "wt")),
        (".xz", lambda path: lzma.open(path, "wt")),
    ],
)
def test_texts_come_from_beir_folders(tmp_path: Path, suffix: str, write: Callable[[Path], Any]) -> None:
    texts = calibration_texts(str(_beir(tmp_path / "beir", write, suffix)), 100)
    assert len(texts) == 12
    assert texts[0] == Text("T0 passage 0", "passage")
    assert texts[3] == Text("query 0", "query")


def test_texts_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    (tmp_path / "lines.jsonl").write_text('{"text": "three", "kind": "query"}\n')
    assert calibration_texts(str(tmp_path / "lines.txt"), 9) == [Text("one", "passage"), Text("two", "passage")]
    assert calibration_texts(str(tmp_path / "lines.jsonl"), 9) == [Text("three", "query")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'{"text": 1}\n', 'every line needs a "text"'),
        ("a.jsonl", b'{"text": "a"}\n{oops\n', "line 2 is not JSON"),
        ("a.jsonl", b"[]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": "a", "kind": "doc"}\n', 'kind has to be "query" or "passage"'),
        ("a.jsonl.gz", b"not gzip", "can't be read"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        calibration_texts(str(tmp_path / name), 5)


def test_texts_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder .*nothing.txt"):
        calibration_texts(str(tmp_path / "nothing.txt"), 5)
    with pytest.raises(DataError, match="is not such a BEIR folder"):
        calibration_texts(str(tmp_path), 5)


# --- an imatrix made elsewhere


def test_an_imatrix_made_elsewhere_gives_the_same_file(tiny_recipe: Path, tmp_path: Path) -> None:
    only = ("--set", 'formats=["gguf"]')
    measured = build(tiny_recipe, tmp_path / "measured", *only)
    given = build(tiny_recipe, tmp_path / "given", *only, "--set", f"calibration.imatrix={measured.folder / 'imatrix.gguf'}")
    ours, again = ((each.folder / each.artifact("gguf")["path"]).read_bytes() for each in (measured, given))
    assert ours == again
    plain = build(tiny_recipe, tmp_path / "plain", *only, "--set", "calibration.tokens=512")
    assert (plain.folder / plain.artifact("gguf")["path"]).read_bytes() != ours  # importance is in the bytes


def _rewrite(source: Path, target: Path, change: Callable[[dict[str, Any]], None], kind: str = "imatrix") -> None:
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(source).tensors}
    change(tensors)
    writer = gguf.GGUFWriter(target, arch="")
    writer.add_type(kind)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


QUERY = "blk.2.attn_q.weight"


def _extra(tensors: dict[str, Any]) -> None:
    tensors["blk.9.attn_q.weight.in_sum2"] = np.ones((1, 4), np.float32)
    tensors["blk.9.attn_q.weight.counts"] = np.ones((1, 1), np.float32)


def _wide(tensors: dict[str, Any]) -> None:
    tensors[f"{QUERY}.in_sum2"] = np.ones((1, 768), np.float32)


def _missing(tensors: dict[str, Any]) -> None:
    del tensors[f"{QUERY}.in_sum2"], tensors[f"{QUERY}.counts"]


def _uncounted(tensors: dict[str, Any]) -> None:
    del tensors[f"{QUERY}.counts"]


def _nan(tensors: dict[str, Any]) -> None:
    tensors[f"{QUERY}.in_sum2"] = np.full((1, 384), np.nan, np.float32)


def test_entries_of_an_imatrix_that_the_model_does_not_need_are_left(three_tier: Built, minilm: Source, tmp_path: Path) -> None:
    _rewrite(three_tier.folder / "imatrix.gguf", tmp_path / "more.gguf", _extra)
    imatrix = read_imatrix(tmp_path / "more.gguf")
    assert "blk.9.attn_q.weight" in imatrix.means
    check_fits(imatrix, Gguf().tensors(minilm))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wide, f"{QUERY} has 768 columns, but 384 in this model"),
        (_missing, f"has no entry for {QUERY}"),
        (_uncounted, f"has no {QUERY}.counts: the imatrix is incomplete"),
        (_nan, f"{QUERY} holds values that no sum of squares"),
    ],
)
def test_an_imatrix_of_another_model_is_refused(
    three_tier: Built, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _rewrite(three_tier.folder / "imatrix.gguf", tmp_path / "other.gguf", change)
    done = run(
        "build", RECIPES / "three_tier.toml", "--out", tmp_path / "out", "--set", f"calibration.imatrix={tmp_path}/other.gguf"
    )
    assert done.exit_code == 2
    assert message in done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "other.gguf"]


def test_what_is_no_imatrix_is_refused(three_tier: Built, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is a GGUF but not an imatrix"):
        read_imatrix(three_tier.folder / three_tier.artifact("gguf")["path"])
    (tmp_path / "text.gguf").write_text("not a GGUF at all")
    with pytest.raises(CalibrationError, match="is not a GGUF imatrix"):
        read_imatrix(tmp_path / "text.gguf")
    with pytest.raises(CalibrationError, match="there is no imatrix file"):
        read_imatrix(tmp_path / "absent.gguf")
