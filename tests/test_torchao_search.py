"""search for torchao folders: what a trial measures is what the folder holds, and budgets are kept in both layouts."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from scipy import stats

import third_format
import tierexport
from conftest import RECIPES, build, run
from tierexport.base.registry import FORMATS
from tierexport.base.workers import HERE
from tierexport.formats.torchao.int4 import plain
from tierexport.search.effects import Option
from tierexport.search.find import fitting, studies_of
from tierexport.search.study import Study, types_in

LAYOUTS = ("portable", "packed")


@pytest.fixture(scope="module")
def studies(tiny_model: Path) -> dict[str, Study]:
    return dict(zip(LAYOUTS, studies_of(str(tiny_model), HERE, "torchao"), strict=True))


def random_types(study: Study, seed: int) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    return {group.name: str(generator.choice(list(group.bytes))) for group in study.groups}


def chosen(study: Study, types: Mapping[str, str]) -> dict[str, Option]:
    return {group.name: Option(types[group.name], group.bytes[types[group.name]], 0) for group in study.groups}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trial_holds_what_the_folder_holds(studies: Mapping[str, Study], layout: str, tmp_path: Path) -> None:
    """Rounded to nearest, value by value; and the folder takes no more than was counted."""
    study = studies[layout]
    types = random_types(study, 3)
    assert set(types.values()) == set(study.groups[1].bytes)  # every type of the layout
    path = tmp_path / "found.toml"
    path.write_text(tomli_w.dumps(study.document(types, "found", "a trial") | {"rounding": "nearest"}))
    built = build(path, tmp_path / "out")
    opened = dict(tierexport.load(built.folder / "torchao", device="cpu").transformers_model.named_parameters())
    for group in study.groups:
        for tensor in group.tensors:
            stored = plain(opened[tensor.name]).detach().numpy()
            np.testing.assert_array_equal(study.trial.nearest(tensor.name, types[group.name]).numpy(), stored)
            assert (stored != study.trial.rows(tensor.name).numpy()).any() == (types[group.name] != study.choices.exact)
    size = built.artifact("torchao")["bytes"]
    assert size <= study.size(chosen(study, types)) < size + 500 * len(study.tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_predictions_are_what_a_build_loses(studies: Mapping[str, Study], layout: str) -> None:
    study, generator = studies[layout], np.random.default_rng(5)
    choices = [
        {name: found[int(generator.integers(len(found)))] for name, found in study.effects.options.items()} for _ in range(5)
    ]
    expected = [study.effects.predicted(choice) for choice in choices]
    built = [study.as_built(study.plan(types_in(choice), "trial")) for choice in choices]
    measured = [float(study.trial.loss(study.trial.encode(model)).mean()) for model in built]
    assert stats.spearmanr(expected, measured).statistic >= 0.9
    assert 0.4 < np.median(np.array(measured) / expected) < 1.1


def test_four_bits_are_measured_with_error_feedback(studies: Mapping[str, Study]) -> None:
    study = studies["packed"]
    for group in (each for each in study.groups if each.layer is not None):
        losses = {option.native: option.loss for option in study.effects.options[group.name]}
        plainly = float(study.trial.sensitivity({tensor.name: "int4" for tensor in group.tensors}).mean())
        assert losses["float16"] < losses["int8"] < losses["int4"] < plainly, group.name


def test_the_first_layout_that_has_such_a_file_is_taken(
    studies: Mapping[str, Study], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock sentence-transformers opens it where the budget allows that, and both keep to it."""
    monkeypatch.chdir(tmp_path)
    portable, packed = studies["portable"].smallest, studies["packed"].smallest
    assert packed < portable
    assert fitting(list(studies.values()), portable) is studies["portable"]
    for layout, budget in (("portable", int(portable * 1.1)), ("packed", (packed + portable) // 2)):
        done = run("search", tiny_model, "--format", "torchao", "--bytes", str(budget), "--out", f"{layout}.toml", "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        manifest = json.loads((Path(found["out"]) / "manifest.json").read_text())
        assert manifest["recipe"]["torchao"]["layout"] == layout
        assert found["bytes"] <= budget
        assert [each["format"] for each in found["results"] if each["status"] == "ok"] == ["torchao"]
        assert 0 < found["measured"] < 0.05
        larger = [
            group.bytes[types] for group in studies[layout].groups if (types := found["types"][group.name]) != group.smallest
        ]
        assert sum(larger) > 0.01 * budget
    assert run("search", tiny_model, "--format", "torchao", "--bytes", str(packed - 1)).exit_code == 2


def test_the_frontier_is_that_of_folders(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierexport.search.frontier.CURVE_POINTS", 2)
    (tmp_path / "recipes").mkdir()
    shutil.copy(RECIPES / "int8.toml", tmp_path / "recipes")
    monkeypatch.setattr("tierexport.search.frontier.shipped", lambda name: tmp_path / name)
    drawn = ("search", tiny_model, "--frontier", "--format", "torchao", "--picture", tmp_path / "frontier.svg")
    done = run(*drawn, "--json")
    assert done.exit_code == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert {each["kind"] for each in points} == {"shipped", "searched"}
    ours, shipped = sorted((each for each in points if each["name"] == "int8"), key=lambda each: each["kind"])
    assert ours["bytes"] <= shipped["bytes"]
    assert 0 < ours["loss"] <= shipped["loss"] * 1.01
    least, largest = sorted((each for each in points if not each["name"]), key=lambda each: each["bytes"])
    assert least["loss"] > 2 * largest["loss"]


@pytest.mark.usefixtures("_registered")
def test_what_a_format_can_not_have_is_said(tiny_model: Path) -> None:
    done = run("search", tiny_model, "--format", "torchao", "--bits", "12", "--max-time", "0.9")
    assert done.exit_code == 2
    assert "types of torchao are not timed" in done.stderr
    assert run("search", tiny_model, "--format", "npz", "--bits", "12").exit_code == 2


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third format, of which nothing is searched."""
    monkeypatch.setitem(FORMATS, "npz", f"{third_format.__name__}:Npz")
