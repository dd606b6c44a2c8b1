"""Weights and outputs quantized together: builds whose vectors are stored by a codec, and are judged as they are stored."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierexport
from conftest import RECIPES, Built, build, run
from tierexport.base.libraries import import_sentence_transformers
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import screen
from tierexport.datasets.textfiles import BUILTIN
from tierexport.vectors.storage import read_codec
from tierexport.verify.retrieval import score

RETRIEVAL = BUILTIN / "retrieval"
BINARY = ("--set", "vectors.level=binary", "--set", f'verify.data=["{RETRIEVAL}"]')


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("stored") / "out"
    return build(RECIPES / "int8.toml", out, *BINARY, "--set", "vectors.asymmetric=true", "--set", "rounding=nearest")


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "verify.json").read_text())["results"]
    return [each for each in found if each["status"] == "ok"]


def test_vectors_are_judged_as_they_are_stored_too(stored: Built) -> None:
    found = rows(stored.folder)
    assert [(each["format"], each["vectors"]) for each in found] == [
        ("gguf", None), ("gguf", "binary documents"), ("torchao", None), ("torchao", "binary documents"),
    ]  # fmt: skip
    plain, coded = found[:2]
    assert plain["cos_mean"] > 0.99
    assert 0.75 < coded["cos_mean"] < 0.85  # of signs with the vector itself: sqrt(2 / pi) for a normal distribution
    assert coded["texts_per_second"] is None
    assert stored.manifest["vectors"]["bytes"] == 48
    assert "codec.safetensors" in stored.manifest["files"]


def test_the_figures_are_those_of_the_loaded_file_and_the_codec(stored: Built) -> None:
    data = read_beir(RETRIEVAL, "test")
    (gguf,) = (stored.folder / "gguf").iterdir()
    model = tierexport.load(str(gguf))
    codec, _ = read_codec(stored.folder / "codec.safetensors")
    queries, documents = model.encode_query(list(data.queries)), model.encode_document(list(data.documents))
    signs = np.unpackbits(codec.encode(documents), axis=1) * 2.0 - 1  # the independent way back from the bits
    middle, quarter = (codec.high + codec.low) / 2, (codec.high - codec.low) / 4
    expected = score(data, queries, (middle + signs * quarter).astype(np.float32)).mean("ndcg_at_10")
    (judged,) = rows(stored.folder)[1]["retrieval"]
    assert judged["ndcg_at_10"] == pytest.approx(expected, abs=2e-3)
    assert judged["reference_ndcg_at_10"] == rows(stored.folder)[0]["retrieval"][0]["reference_ndcg_at_10"]


def test_card_and_report_tell_it(stored: Built) -> None:
    card = (stored.folder / "README.md").read_text()
    (judged,) = rows(stored.folder)[1]["retrieval"]
    assert "## Stored vectors" in card
    assert "48 bytes for 384 dimensions" in card
    assert f"| gguf, binary documents vectors | cpu | {judged['ndcg_at_10']:.4f} |" in card
    assert "binary documents" in (stored.folder / "report.html").read_text()


def test_the_card_s_code_runs(stored: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (stored.folder / "README.md").read_text().split("## Stored vectors")[1].split("## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    monkeypatch.chdir(stored.folder)
    found: dict[str, Any] = {}
    exec(code, found)  # what the card tells users to run
    assert found["codes"].shape == (2, 48)
    assert found["rows"].tolist() == [[0]]  # a flat tire wants a patch, not an oven


def test_it_verifies_again_with_its_own_codec(stored: Built) -> None:
    before = rows(stored.folder)
    done = run("verify", stored.folder, "--data", RETRIEVAL, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.stderr
    after = [each for each in json.loads(done.stdout)["results"] if each["vectors"]]
    assert [each["cos_mean"] for each in after] == [each["cos_mean"] for each in before if each["vectors"]]
    shown = run("verify", stored.folder, "--device", "cpu")
    assert "binary" in shown.stdout
    refused = run("verify", stored.folder, "--codec", stored.folder / "codec.safetensors", "--device", "cpu")
    assert refused.exit_code == 2
    assert "[vectors]" in refused.stderr


def test_anybody_s_file_is_judged_by_a_codec(stored: Built) -> None:
    (gguf,) = (stored.folder / "gguf").iterdir()
    command = ("verify", gguf, "--model", "all-MiniLM-L6-v2", "--device", "cpu", "--codec", stored.folder / "codec.safetensors")
    done = run(*command, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["results"]
    assert [each["vectors"] for each in found] == [None, "binary documents"]
    assert found[1]["cos_mean"] == rows(stored.folder)[1]["cos_mean"]


def test_gates_are_about_what_is_stored(tiny_recipe: Path, tmp_path: Path) -> None:
    gates = '["stored_cos_mean >= 0.99", "cos_mean >= 0.9", "stored_ndcg_delta >= -1"]'
    done = run("build", tiny_recipe, "--out", tmp_path / "out", *BINARY, "--set", f"verify.gates={gates}", "--json")
    assert done.exit_code == 1
    judged = [(each["name"], each["passed"]) for each in json.loads(done.stdout)["gates"]]
    assert (
        judged
        == [("stored_cos_mean >= 0.99", False)] * 2 + [("cos_mean >= 0.9", True)] * 2 + [("stored_ndcg_delta >= -1", True)] * 2
    )
    assert "stored_cos_mean" in done.stderr


def test_a_gate_on_vectors_that_will_not_be_stored_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    done = run("build", tiny_recipe, "--out", tmp_path / "out", "--set", 'verify.gates=["stored_cos_mean >= 0.5"]')
    assert done.exit_code == 2
    assert "the gate stored_cos_mean >= 0.5 is about quantized vectors, and there are none: set vectors.level" in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["vectors.level=int5"], "vectors.level = 'int5' has to be one of int8, int4, int3, int2, trinary, binary"),
        (["vectors.widen=2"], "vectors.level is missing"),
        (["vectors.level=int8", "vectors.widen=0"], "vectors.widen = 0"),
        (["vectors.level=int8", "vectors.rotate=1"], "vectors.rotate = 1 has to be true or false"),
        (["vectors.level=int8", "vectors.codec=x"], "remove vectors.level"),
        (["vectors.codec=nowhere.safetensors"], "nowhere.safetensors is no codec"),
        (['verify.gates=["stored_cos >= 1"]'], "'stored_cos' is not measured"),
    ],
)
def test_mistakes(tiny_recipe: Path, tmp_path: Path, settings: list[str], told: str) -> None:
    done = run("build", tiny_recipe, "--out", tmp_path / "out", *(part for each in settings for part in ("--set", each)))
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_codec_from_a_file(tiny_recipe: Path, stored: Built, tmp_path: Path) -> None:
    model, codec = tiny_recipe.parent / "model", tiny_recipe.parent / "mine.safetensors"
    fitted = run("vectors", "fit", model, "--level", "int4", "--widen", "2", "--per-vector", "--out", codec, "--json")
    assert json.loads(fitted.stdout)["bytes"] == 64
    built = build(tiny_recipe, tmp_path / "out", "--set", "vectors.codec=mine.safetensors", "--set", 'formats=["gguf"]')
    assert [each["vectors"] for each in rows(built.folder)] == [None, "int4"]
    assert built.manifest["vectors"]["width"] == 128
    recipe, settings = built.folder / "recipe.toml", ("--set", f"model={model}")  # it names the codec beside it
    again = build(recipe, tmp_path / "again", *settings)
    assert again.manifest["vectors"] == built.manifest["vectors"]
    other = stored.folder / "codec.safetensors"
    done = run("build", tiny_recipe, "--out", tmp_path / "other", "--set", f"vectors.codec={other}")
    assert done.exit_code == 2
    assert "384 dimensions" in done.stderr


def test_a_codec_that_is_taken_out_of_the_recipe_is_gone(tiny_recipe: Path, tmp_path: Path) -> None:
    build(tiny_recipe, tmp_path / "out", *BINARY, "--set", 'formats=["gguf"]')
    built = build(tiny_recipe, tmp_path / "out", "--set", 'formats=["gguf"]')
    assert built.manifest["vectors"] is None
    assert not (tmp_path / "out" / "codec.safetensors").exists()
    assert "Stored vectors" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("what", ["lora", "model"])
def test_a_trained_model_is_built_with_its_codec(what: str, tiny_recipe: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"query": text[: len(text) // 2], "positive": text}) + "\n" for text in screen()]
    pairs.write_text("".join(lines), "utf-8")
    model, out = tiny_recipe.parent / "model", tmp_path / "trained"
    options = ("--pairs", pairs, "--level", "binary", "--what", what, "--steps", "8", "--every", "4", "--contrast", "1")
    done = run("vectors", "train", model, *options, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    st = import_sentence_transformers()
    before, after = (st.SentenceTransformer(str(each), device="cpu").encode(screen()[:5]) for each in (model, out))
    step = json.loads(done.stdout)["best_step"]
    assert np.allclose(before, after, atol=1e-6) == (step == 0)  # at step 0 the untrained weights were the best
    inspected = run("inspect", out, "--json")
    assert inspected.exit_code == 0, inspected.stderr
    assert '"low"' not in inspected.stdout  # a codec is no part of the model
    built = build(tiny_recipe, tmp_path / "built", "--set", f'model="{out}"')
    assert [each["vectors"] for each in rows(built.folder)] == [None, "binary"] * 2
    assert built.manifest["vectors"]["bytes"] == 8


def test_another_codec_in_the_folder_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    built = build(tiny_recipe, tmp_path / "out", "--set", "vectors.level=binary", "--set", 'formats=["gguf"]')
    run("vectors", "fit", tiny_recipe.parent / "model", "--level", "int4", "--out", tmp_path / "other")
    shutil.copy(tmp_path / "other", built.folder / "codec.safetensors")
    done = run("verify", built.folder, "--device", "cpu")
    assert done.exit_code == 2
    assert "another codec than the one" in done.stderr
