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
from tierexport.base.errors import InputError
from tierexport.base.registry import FORMATS
from tierexport.base.workers import HERE
from tierexport.datasets.beir import read_beir, read_retrieval_set
from tierexport.datasets.textfiles import BUILTIN
from tierexport.formats.torchao.int4 import plain
from tierexport.metrics.similarity import normalized
from tierexport.search.effects import Option
from tierexport.search.find import fitting, studies_of
from tierexport.search.lossless import RetrievalJudge
from tierexport.search.study import Study, types_in
from tierexport.verify.intervals import Difference

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
        taken = [(group, found["types"][group.name]) for group in studies[layout].groups]
        assert sum(group.bytes[native] for group, native in taken if native != group.smallest) > 0.01 * budget
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


def fp32_ranking(study: Study, folder: Path) -> Path:
    """The built-in set with other grades: each query's ten first documents by fp32, from 10 down to 1."""
    data = read_retrieval_set("builtin")
    shutil.copytree(BUILTIN / "retrieval", folder)
    queries, documents = (study.trial.model.encode(list(texts)) for texts in (data.queries, data.documents))
    order = np.argsort(-(normalized(queries) @ normalized(documents).T), axis=1)[:, :10]
    rows = [
        f"{query}\t{data.document_ids[document]}\t{10 - place}\n"
        for query, found in zip(data.query_ids, order, strict=True)
        for place, document in enumerate(found)
    ]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def test_the_smallest_folder_whose_retrieval_is_shown_to_lose_less(
    studies: Mapping[str, Study], tiny_model: Path, tmp_path: Path
) -> None:
    """Judged by fp32's own ten first documents, whose every change of place is a loss: it loses less than half of what the
    smallest may lose, and 2 % fewer bytes are too few.
    """
    first, packed = studies.values()
    data = fp32_ranking(first, tmp_path / "data")
    judge = RetrievalJudge(first.trial.model, first.source, [read_beir(data)])
    assert judge.reference == pytest.approx(1)

    def judged(budget: int) -> Difference:
        study = fitting([first, packed], budget)
        return judge.difference(study.as_built(study.plan(types_in(study.within(budget)), "judged")))

    loss = -judged(packed.smallest).ci_low / 2
    assert loss > 0
    options = ("--format", "torchao", "--lossless", "--loss", str(loss), "--data", data, "--json")
    done = run("search", tiny_model, *options, "--out", tmp_path / "least.toml")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert packed.smallest < found["bytes"] < first.largest
    assert [each["format"] for each in found["results"] if each["status"] == "ok"] == ["torchao"]
    assert judged(max(int(found["bytes"] * 0.98), packed.smallest)).ci_low <= -loss


def test_what_a_format_can_not_have_is_said(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("search", tiny_model, "--format", "torchao", "--bits", "12", "--max-time", "0.9")
    assert done.exit_code == 2
    assert "types of torchao are not timed" in done.stderr
    assert "Measuring" not in done.stderr
    monkeypatch.setitem(FORMATS, "npz", f"{third_format.__name__}:Npz")
    with pytest.raises(InputError, match="npz offers no types to choose from"):
        studies_of(str(tiny_model), HERE, "npz")
