"""quantize: from a model and a size to a verified artifact and a repository, in one command."""

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from conftest import MINILM, run
from forked import command
from loopback_card import card_errors
from loopback_repository import User
from loopback_writable import WritableHub, serving_writable
from tierexport.base.errors import InputError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.sizes import shown_size
from tierexport.datasets.textfiles import BUILTIN
from tierexport.search.request import Request, tag_of
from tierexport.search.study import Study
from tierexport.search.trial import TrialModel

Made = tuple[Path, dict[str, Any]]
"""The folder of an artifact, and what --json printed of it."""

TOKEN, BASE = "hf_" + "a" * 20 + "SECRET", "alice/base"


@pytest.fixture(scope="module")
def study(tiny_model: Path) -> Study:
    return Study(str(tiny_model))


@pytest.fixture(scope="module")
def budget(study: Study) -> str:
    """A size between the smallest that there is and 8 bits everywhere."""
    return f"{study.least * 1.25 / 1e6:.2f}MB"


@pytest.fixture(scope="module")
def made(tiny_model: Path, budget: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact of that size."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    done = run(
        "quantize", tiny_model, "--size", budget, "--data", "builtin", "--data", BUILTIN / "retrieval", "--out", out, "--json"
    )
    assert done.exit_code == 0, done.stderr
    return out, json.loads(done.stdout)


def test_it_keeps_to_the_size_and_says_what_it_is_worth(made: Made, budget: str) -> None:
    out, told = made
    (file,) = out.glob("gguf/*.gguf")
    wanted = float(budget.removesuffix("MB")) * 1e6
    assert 0.9 * wanted < file.stat().st_size <= wanted
    assert re.fullmatch(r"tiny-bert-TIER_[0-9_]+MB\.gguf", file.name)
    verified = next(each for each in json.loads((out / "verify.json").read_text())["results"] if each["device"] == "cpu")
    whole = json.loads((out / "manifest.json").read_text())["model"]["fp32_bytes"]
    figures, _, other = told["summary"].partition(" on the built-in set, ")
    assert re.fullmatch(r"NDCG@10 .+ on retrieval", other)
    found = re.fullmatch(r"(.+) → (.+) \((.+) × smaller\), cosine ([\d.]+), NDCG@10 (.+) \((.+) to (.+)\)", figures)
    assert found, told["summary"]
    assert found.groups()[:2] == (shown_size(whole), shown_size(file.stat().st_size))
    assert float(found[3]) == pytest.approx(whole / file.stat().st_size, abs=0.06)
    assert float(found[4]) == pytest.approx(verified["cos_mean"], abs=0.0006)
    builtin = verified["retrieval"][0]
    said = [float(each.replace("−", "-")) for each in found.groups()[4:]]
    assert said == [round(builtin[key], 3) for key in ("delta", "ci_low", "ci_high")]


def test_the_weights_of_fp32_are_those_of_its_file(made: Made, tiny_model: Path) -> None:
    whole = json.loads((made[0] / "manifest.json").read_text())["model"]["fp32_bytes"]
    on_disk = (tiny_model / "model.safetensors").stat().st_size
    assert on_disk - 8192 < whole <= on_disk  # without the header


def test_it_ends_with_one_sentence_and_comes_out_the_same(made: Made, tiny_model: Path, budget: str, tmp_path: Path) -> None:
    """What was measured is not measured again; the same request makes the same file."""
    done = run("quantize", tiny_model, "--size", budget, "--out", tmp_path / "again")
    assert done.exit_code == 0, done.stderr
    assert made[1]["summary"].startswith(done.stdout.splitlines()[-1])  # on one set fewer
    (one,), (two,) = made[0].glob("gguf/*.gguf"), (tmp_path / "again").glob("gguf/*.gguf")
    assert one.read_bytes() == two.read_bytes()


# --- what it is asked for


def test_three_ways_to_name_a_budget(study: Study) -> None:
    parameters = study.parameters
    assert Request("x", size=3_000_000).budget(study) == 3_000_000
    assert Request("x", bits=9).budget(study) == int(9 * parameters / 8)
    assert Request("x", like="Q8_0").budget(study) == study.stock_bytes("Q8_0")
    assert Request("x").budget(study) == 0


@pytest.mark.parametrize(
    ("budget", "tag"),
    [
        (16_000_000, "TIER_16MB"),
        (16_343_008, "TIER_16_3MB"),
        (800_000, "TIER_0_8MB"),
        (1_200_000_000, "TIER_1_2GB"),
        (0, "TIER_LOSSLESS"),
    ],
)
def test_files_are_named_by_their_size(budget: int, tag: str) -> None:
    assert tag_of(budget) == tag
    assert re.fullmatch(r"\w+", tag)


def test_what_is_too_small_is_said_with_what_is_not(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrialModel, "__init__", lambda *_: pytest.fail("something was measured"))
    done = run("quantize", tiny_model, "--size", "100KB", "--out", tmp_path / "out")
    assert done.exit_code == 2
    found = re.search(r"100 KB are too few for tiny-bert: .* it takes ([\d.]+) MB, ([\d.]+) bits per parameter", done.stderr)
    assert found, done.stderr
    assert list(tmp_path.iterdir()) == []
    study = Study(str(tiny_model))
    assert float(found[1]) == pytest.approx(study.least / 1e6, abs=0.006)
    assert Request("x", bits=float(found[2]) + 0.01).budget(study) > study.least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "16MB", "--bits", "5"], "three ways to name one budget"),
        (["--size", "16"], "'16' is no size"),
        (["--bits", "40"], "40 bits per parameter can't be met"),
        (["--like", "Q4_K"], "'Q4_K' is no type of llama-quantize's; did you mean 'Q4_K_M'?"),
        (["--formats", "gguf,torch"], "'torch' is no format; did you mean 'torchao'?"),
        (["--formats", "torchao"], "gguf has to be among the formats"),
        (["--texts", "nothing.txt"], "there is no file or folder"),
        (["--data", "nothing"], "there is no retrieval set 'nothing'"),
        (["--push", "hf:alice"], "has to be hf:ORG/NAME"),
        (["--push", "dir:x", "--create-pr"], "pull requests are the Hugging Face hub's"),
        (["--sizes", "8MB,8.001MB"], "two of the sizes would have the same name"),
        (["--sizes", "8MB", "--size", "8MB"], "name --size or --sizes, not both"),
        (["--out", "occupied"], "is not an artifact, so it is not replaced"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(
    tiny_model: Path, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialModel, "__init__", lambda *_: pytest.fail("something was measured"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").write_text("mine")
    done = run("quantize", tiny_model, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]


def test_contradictions_are_errors_in_python_too() -> None:
    with pytest.raises(InputError, match="name one of them"):
        Request("x", size=1, like="Q8_0")


def test_both_formats_of_one_search(tiny_model: Path, budget: str, tmp_path: Path) -> None:
    done = run("quantize", tiny_model, "--size", budget, "--formats", "gguf,torchao", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    artifacts = {each["format"]: each for each in json.loads(done.stdout)["manifest"]["artifacts"]}
    assert set(artifacts) == {"gguf", "torchao"}
    types = {each["type"] for each in artifacts["torchao"]["tensors"] if each["role"] != "kept"}
    assert types <= {"int4", "int8", "float16", "float32"}


def test_both_formats_of_two_sizes_are_one_repository(tiny_model: Path, study: Study, tmp_path: Path) -> None:
    """A byte per value makes int8 the smallest that torchao has, so it is what either size takes, and lies there once."""
    sizes = ",".join(f"{study.least / 1e6 + more:.2f}MB" for more in (0.01, 0.02))  # too little for 16 bits anywhere
    place = ("--out", tmp_path / "made", "--push", f"dir:{tmp_path / 'out'}")
    done = run("quantize", tiny_model, "--sizes", sizes, "--formats", "gguf,torchao", *place, "--json")
    assert done.exit_code == 0, done.stderr
    for each in json.loads(done.stdout)["sizes"]:
        artifacts = {artifact["format"]: artifact for artifact in each["manifest"]["artifacts"]}
        assert set(artifacts) == {"gguf", "torchao"}
        assert {tensor["type"] for tensor in artifacts["torchao"]["tensors"] if tensor["role"] != "kept"} == {"int8"}
    assert {len(list((tmp_path / "out").glob(pattern))) for pattern in ("*.gguf", "proof/*")} == {2}
    (weights,) = (tmp_path / "out").rglob("model.safetensors")
    assert weights.parent == tmp_path / "out" / "torchao"
    st = import_sentence_transformers()
    found = [st.SentenceTransformer(str(each), device="cpu").encode("a text") for each in (weights.parents[1], weights.parent)]
    np.testing.assert_array_equal(*found)


# --- to where people download it


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    with serving_writable(tmp_path / "cache") as server:
        server.tokens[TOKEN] = User("alice")
        yield server


def test_pushed_as_a_pull_request(hub: WritableHub, tiny_model: Path, budget: str, tmp_path: Path) -> None:
    hub.create("alice/tiny-GGUF")
    before = hub.head("alice/tiny-GGUF").oid
    arguments = ["quantize", str(tiny_model), "--size", budget, "--out", str(tmp_path / "out"), "--push", "hf:alice/tiny-GGUF"]
    environment = {**os.environ, **hub.environment(), "HF_TOKEN": TOKEN}
    done = command(*arguments, "--create-pr", environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.endpoint}/alice/tiny-GGUF/discussions/1" in done.stdout
    assert hub.head("alice/tiny-GGUF").oid == before
    files = hub.head("alice/tiny-GGUF", "refs/pr/1").files
    (name,) = (path for path in files if path.startswith("gguf/"))
    assert files[name].content == (tmp_path / "out" / name).read_bytes()


def test_a_fine_tune_in_a_folder_goes_out_by_its_base_model_and_without_a_path(
    hub: WritableHub, study: Study, tiny_model: Path, tmp_path: Path
) -> None:
    """To a hub and to a folder, several sizes and one, with texts of its own; nothing has to be overruled."""
    tuned = Path(shutil.copytree(tiny_model, tmp_path / "secret-place" / "my-tune"))
    weights = load_file(tuned / "model.safetensors")
    save_file({name: each * np.float32(1.01) for name, each in weights.items()}, tuned / "model.safetensors", {"format": "pt"})
    texts = tmp_path / "secret-place" / "mine.txt"
    texts.write_text("".join(f"the {number}th text is about bread and rivers\n" for number in range(200)))
    sizes = ",".join(f"{study.least * factor / 1e6:.2f}MB" for factor in (1.25, 1.6))
    arguments = ["quantize", tuned, "--sizes", sizes, "--texts", texts, "--base-model", BASE, "--out", tmp_path / "made"]
    environment = {**os.environ, **hub.environment(), "HF_TOKEN": TOKEN}
    done = command(*map(str, arguments), "--push", "hf:alice/my-tune-GGUF", environment=environment)
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "made").iterdir())
    for place, given in (("several", folders), ("one", folders[:1])):
        published = run("publish", *given, "--to", f"dir:{tmp_path / place}")
        assert published.exit_code == 0, published.stderr
    gone = {path: blob.content for path, blob in hub.head("alice/my-tune-GGUF").files.items()}
    for place in ("several", "one"):
        gone |= {f"{place}/{each.name}": each.read_bytes() for each in (tmp_path / place).rglob("*") if each.is_file()}
    assert len(gone) > 20
    for path, content in gone.items():
        assert not any(str(each).encode() in content for each in (tmp_path, f"{Path.home()}/", "secret-place")), path
    for card in ("README.md", "several/README.md", "one/README.md"):
        head = yaml.safe_load(gone[card].split(b"---\n")[1])
        assert (head["base_model"], head["base_model_relation"]) == (BASE, "quantized")
        assert card_errors(gone[card].decode()) == []
    assert tomllib.loads(gone["one/recipe.toml"].decode())["model"] == BASE


@pytest.mark.skipif("TIEREXPORT_SLOW" not in os.environ, reason="takes minutes: TIEREXPORT_SLOW=1")
def test_minilm_at_16_mb(tmp_path: Path) -> None:
    done = run("quantize", MINILM, "--size", "16MB", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["manifest"]["artifacts"][0]["bytes"] <= 16_000_000
    assert 1 - told["results"][0]["cos_mean"] <= 0.002
