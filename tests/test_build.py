"""The whole build, as a user runs it: what it leaves, what it reuses, what kills and errors do to it."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from conftest import RECIPES, ROOT, Built, build, cache_of_its_own, encoded, run
from tierexport.artifact.folder import ENTRANCE
from tierexport.base.digests import folder_digests
from tierexport.base.outputs import building
from tierexport.metrics.similarity import cosines
from tierexport.model.encoder import open_model
from tierexport.model.source import open_source

REPORTS = ("verify.json", "README.md", "report.html")

KILLS = int(os.environ.get("TIEREXPORT_KILLS", "4"))
"""How many kills the test tries; 20 were tried for docs/log.md."""


def tierexport(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, to which Ctrl-C means what it means at a terminal."""
    command = [sys.executable, "-m", "tierexport", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_an_artifact_folder_holds_what_the_design_says(three_tier: Built) -> None:
    names = {path.name for path in three_tier.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "manifest.json",
        "recipe.toml",
        "imatrix.gguf",
        "gguf",
        "torchao",
        "verify.json",
        "README.md",
        "report.html",
        *ENTRANCE,
    }
    card = (three_tier.folder / "README.md").read_text()
    for artifact in three_tier.manifest["artifacts"]:
        assert f"{artifact['bytes']:,}" in card
        assert f"{artifact['stored_bits']:.2f}" in card


@pytest.mark.parametrize("fixture", ["three_tier", "f16", "packed"])
def test_stored_bits_are_the_bytes_on_disk(fixture: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(fixture)
    for artifact in built.manifest["artifacts"]:
        path = built.folder / artifact["path"]
        on_disk = path.stat().st_size if path.is_file() else (path / "model.safetensors").stat().st_size
        assert artifact["stored_bits"] * artifact["parameters"] / 8 == pytest.approx(on_disk, abs=0.01)


def test_three_tier_keeps_what_it_should(three_tier: Built) -> None:
    """Floors between what GPTQ gives and what rounding to nearest does: 0.9977, 0.9972, 0.959, 0.952 against 0.9921, 0.9881,
    0.928, 0.899 (docs/results.md).
    """
    gguf, torchao = three_tier.results["gguf"], three_tier.results["torchao"]
    assert gguf["tokens_equal"] is torchao["tokens_equal"] is True
    assert gguf["cos_mean"] > 0.996
    assert torchao["cos_mean"] > 0.995
    assert gguf["top10_retention"] > 0.94
    assert torchao["top10_retention"] > 0.93


def test_the_recipe_inside_builds_the_same_bytes(tiny_recipe: Path, tmp_path: Path) -> None:
    once = build(tiny_recipe, tmp_path / "once")
    again = build(once.folder / "recipe.toml", tmp_path / "again", "--set", f"model={tiny_recipe.parent / 'model'}")
    assert lasting(again.folder) == lasting(once.folder)


def lasting(folder: Path) -> dict[str, str]:
    """The digests of an artifact's files but for the reports, which say how fast this run was."""
    return {
        name: digest
        for name, digest in folder_digests(folder).items()
        if name not in ("verify.json", "README.md", "report.html")
    }


def test_an_unchanged_build_reuses_its_stages(tiny_recipe: Path) -> None:
    out = tiny_recipe.parent / "out"
    build(tiny_recipe, out)
    files = [*out.glob("gguf/*"), out / "torchao" / "model.safetensors"]
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    build(tiny_recipe, out)
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files] == before
    build(tiny_recipe, out, "--set", "torchao.layout=packed", "--set", "tiers.ends.bits=8")
    after = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_rebuild_leaves_nothing_of_another_recipe_and_touches_no_old_file(tiny_recipe: Path) -> None:
    """The folder is cloned by hard links, so a file written in place would change the old artifact."""
    out, kept = tiny_recipe.parent / "out", tiny_recipe.parent / "kept"
    build(tiny_recipe, out)
    shutil.copytree(out, kept, copy_function=os.link)
    before = folder_digests(kept)
    build(tiny_recipe, out, "--set", "calibration.tokens=448", "--set", "description=again")
    assert (out / "imatrix.gguf").read_bytes() != (kept / "imatrix.gguf").read_bytes()
    assert folder_digests(kept) == before
    build(tiny_recipe, out, "--set", 'formats=["torchao"]')
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {"manifest.json", "recipe.toml", "torchao", *REPORTS, *ENTRANCE}


def test_an_artifact_of_a_local_folder_verifies_again(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tiny_recipe, tiny_recipe.parent / "out", "--set", 'formats=["torchao"]')
    monkeypatch.chdir("/")
    done = run("verify", tiny_recipe.parent / "out", "--device", "cpu")
    assert done.exit_code == 0, done.stderr


def test_json_is_one_object_and_nothing_else(tiny_recipe: Path) -> None:
    process = tierexport("build", tiny_recipe, "--out", tiny_recipe.parent / "out", "--json")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert set(json.loads(stdout)) == {"out", "manifest", "reference", "similarity", "passed", "results", "gates"}
    stages = [re.fullmatch(r"tierexport: (.+): (?:\d+ min )?[\d.]+ s", line) for line in stderr.splitlines()]
    assert all(stages), stderr  # a line per stage where nobody watches, and none of the libraries' noise
    names = [each[1] for each in stages if each]
    assert names[:3] == ["Looking at the model", "Checking the inputs", "Checking the weights"]
    assert names[-2:] == ["Writing the torchao folder", "Verifying"]


def test_killed_at_any_moment_the_next_run_completes_with_the_same_bytes(
    tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGKILL to the whole process group, converter and worker included, at random moments."""
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    cache = str(cache_of_its_own(undisturbed / "cache"))
    started = time.monotonic()
    process = tierexport("build", tiny_recipe, "--out", undisturbed / "out", TIEREXPORT_CACHE=cache)
    assert process.wait(timeout=300) == 0, process.stderr
    duration = time.monotonic() - started
    expected = lasting(undisturbed / "out")
    chance = random.Random(1)
    for number in range(KILLS):
        out = tiny_recipe.parent / f"out{number}"
        fresh = str(tiny_recipe.parent / f"cache{number}")
        shutil.copytree(cache, fresh)
        shutil.rmtree(Path(fresh) / "models")
        process = tierexport("build", tiny_recipe, "--out", out, TIEREXPORT_CACHE=fresh)
        time.sleep(chance.uniform(0, duration))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = tierexport("build", tiny_recipe, "--out", out, TIEREXPORT_CACHE=fresh)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert lasting(out) == expected
        assert not list(tiny_recipe.parent.glob(f".out{number}*"))


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(tiny_recipe: Path) -> None:
    """Once something was rounded: what is left is kept, and the next run ends as if nothing had been."""
    out = tiny_recipe.parent / "out"
    process = tierexport("build", tiny_recipe, "--out", out)
    while not (tiny_recipe.parent / ".out.building" / ".stages" / "gguf.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "tierexport: stopped; the same command goes on where it was"
    assert "Traceback" not in stderr
    (left,) = (tiny_recipe.parent / ".out.building" / "gguf").glob("*.gguf")
    made = left.stat().st_mtime_ns
    build(tiny_recipe, out)
    assert (out / "gguf" / left.name).stat().st_mtime_ns == made
    assert lasting(out) == lasting(build(tiny_recipe, tiny_recipe.parent / "undisturbed").folder)


# --- mistakes


def test_a_full_disk_is_noticed_before_anything_is_computed(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr("tierexport.pipeline.check_finite", lambda _: pytest.fail("the weights were read"))
    done = run("build", tiny_recipe, "--out", tiny_recipe.parent / "out")
    assert done.exit_code == 3
    assert re.search(r"out will take about [\d.]+ MB, and its disk has 1.00 KB left: free some", done.stderr)
    assert not list(tiny_recipe.parent.glob("*out*"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("calibration.texts=nothing.txt", "there is no file or folder"),
        ("calibration.imatrix=nothing.gguf", "there is no imatrix file"),
        ("verify.data=nothing", "nothing"),
        ("verify.sts=nothing.tsv", "nothing.tsv"),
        ("vectors.codec=nothing.safetensors", "nothing.safetensors is no codec"),
        ("verify.gates=ndcg_delta >= -1", "takes a retrieval set"),
    ],
)
def test_inputs_are_read_before_the_weights(
    tiny_recipe: Path, setting: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a mistake in one leaves what an earlier run has done so far."""
    monkeypatch.setattr("tierexport.pipeline.check_finite", lambda _: pytest.fail("the weights were read"))
    left = tiny_recipe.parent / ".out.building" / "gguf"
    left.mkdir(parents=True)
    done = run("build", tiny_recipe, "--out", tiny_recipe.parent / "out", "--set", setting)
    assert done.exit_code == 2
    assert message in done.stderr
    assert left.is_dir()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "tiers.midle.bits=4"], 2, "tiers.midle is used by no rule"),
        (["--set", "model=no-such-model"], 2, "there is no model 'no-such-model'"),
        (["--set", "calibration.texts=nothing.txt"], 2, "there is no file or folder"),
        (["--set", "model=pypi:no-such-package"], 3, "pip install no-such-package"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = run("build", RECIPES / "three_tier.toml", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stderr.startswith("tierexport: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_empty_calibration_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    texts = f"calibration.texts={tmp_path / 'empty.txt'}"
    done = run("build", RECIPES / "three_tier.toml", "--out", tmp_path / "out", "--set", texts)
    assert done.exit_code == 2
    assert "holds no text" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fails", "megabytes"), [("conversion", 1), ("gguf", 4), ("torchao", 4), ("layers", 0.1)])
def test_a_disk_that_fills_up_is_one_message_and_leaves_nothing(
    tiny_recipe: Path, tmp_path: Path, fails: str, megabytes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of a file stands for the disk."""
    cache = cache_of_its_own(tmp_path / "cache")
    monkeypatch.setenv("TIEREXPORT_CACHE", str(cache))
    limit = int(megabytes * (1 << 20))
    command = [sys.executable, "-m", "tierexport", "build", str(tiny_recipe), "--out", str(tmp_path / "full" / "out")]
    if fails == "conversion":  # a model that nobody has converted yet
        (tiny_recipe.parent / "model" / "config_sentence_transformers.json").write_text('{"prompts": {"query": "find"}}')
    else:
        build(tiny_recipe, tmp_path / "first")
        command += ["--set", f'formats=["{fails.replace("layers", "gguf")}"]', "--set", "tiers.embeddings.bits=32"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "full").glob("*"))
    assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "x" * 101, "a b"])
def test_a_name_that_cannot_name_files_is_refused(name: str) -> None:
    done = run("plan", RECIPES / "int8.toml", "--set", f"name={name}")
    assert done.exit_code == 2
    assert "for it names files" in done.stderr


def test_paths_in_set_start_where_the_user_is(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_recipe.parent)
    done = run("plan", "int8", "--set", "model=model", "--json")
    assert done.exit_code == 0, done.stderr


def test_an_unexpected_error_is_one_message_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of our own making")

    monkeypatch.setattr("tierexport.pipeline.plan", broken)
    done = run("plan", "int8")
    assert done.exit_code == 70
    assert done.stderr == "tierexport: unexpected ZeroDivisionError: of our own making (tierexport --debug … shows where)\n"


def test_two_spellings_of_one_folder_are_one_folder(tiny_recipe: Path) -> None:
    out = tiny_recipe.parent / "out"
    (tiny_recipe.parent / "sub").mkdir()
    with building(out):
        done = run("build", tiny_recipe, "--out", tiny_recipe.parent / "sub" / ".." / "out")
    assert done.exit_code == 3
    assert "another run is at work on" in done.stderr


def test_debug_keeps_the_traceback() -> None:
    process = tierexport("--debug", "plan", "absent.toml")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in stderr


# --- the archive


@pytest.fixture
def archive_settings(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    def settings(archive: str) -> dict[str, str]:
        return {"TIEREXPORT_ARCHIVE": archive, "TIEREXPORT_CACHE": str(tmp_path / "cache")}

    return settings


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"half an archive", "is pinned: it is damaged or not the pinned one"), (None, "which is not a file")],
)
def test_a_wrong_archive_is_refused(
    tiny_recipe: Path, tmp_path: Path, archive_settings: Callable[[str], dict[str, str]], content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "archive.tar.gz").write_bytes(content)
    process = tierexport("plan", tiny_recipe, **archive_settings(str(tmp_path / "archive.tar.gz")))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert message in stderr
    assert not (tmp_path / "cache" / "converter-0.3.36").exists()


def test_a_fetch_that_fails_is_refused_with_the_remedy(
    tiny_recipe: Path, tmp_path: Path, archive_settings: Callable[[str], dict[str, str]]
) -> None:
    """An index that is not there, and no other place to look."""
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0",
               "PIP_NO_CACHE_DIR": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_EXTRA_INDEX_URL": ""}  # fmt: skip
    process = tierexport("plan", tiny_recipe, **archive_settings(""), **nowhere)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "can't fetch llama-cpp-python 0.3.36 through pip" in stderr
    assert "TIEREXPORT_ARCHIVE" in stderr
    assert not (tmp_path / "cache" / "converter-0.3.36").exists()


# --- what the project says of itself


def test_the_shipped_recipes_all_build_on_the_tiny_model(tiny_model: Path, tmp_path: Path) -> None:
    for recipe in sorted(
        each for each in RECIPES.glob("*.toml") if each.stem != "fast"
    ):  # which is compiled by test_torchao.py
        built = build(recipe, tmp_path / recipe.stem, "--set", f"model={tiny_model}")
        assert {each["status"] for each in built.results.values()} == {"ok"}, recipe.stem


def test_doctor_and_inspect_answer(three_tier: Built) -> None:
    found = json.loads(run("doctor", "--json").stdout)["findings"]
    assert {"python", "torch", "ggml quantizer", "CUDA", "cache"} <= {each["what"] for each in found}
    shown = run("inspect", three_tier.folder)
    assert shown.exit_code == 0
    assert "IQ4_NL" in shown.stdout
    assert "bert.pooling_type = 1" in shown.stdout
    assert run("inspect", ROOT / "README.md").exit_code == 2
    assert run("inspect", ROOT / "no-such-file").exit_code == 2


def test_the_tiny_models_vectors_depend_on_its_layers(tiny_model: Path, tmp_path: Path) -> None:
    """What a test asks of an artifact's vectors says something of its matrices: with all of them zero, little is left."""
    zeroed = tmp_path / "zeroed"
    shutil.copytree(tiny_model, zeroed)
    weights = load_file(zeroed / "model.safetensors")
    layers = {name for name, each in weights.items() if ".layer." in name and each.dim() == 2}
    assert len(layers) == 12
    save_file(
        {name: each * (name not in layers) for name, each in weights.items()}, zeroed / "model.safetensors", {"format": "pt"}
    )
    texts = ["Berlin is the capital of Germany.", "what a loaf of bread costs", "The committee approved the budget."]
    whole, without = (encoded(open_model(open_source(str(path))), texts, tmp_path).vectors for path in (tiny_model, zeroed))
    assert cosines(np.asarray(whole), np.asarray(without)).max() < 0.5
