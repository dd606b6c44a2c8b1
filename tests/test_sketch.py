"""Plans from a description alone: what they say is what a plan of the model's files says, without weights and network."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from conftest import MINILM, RECIPES, run
from families import FAMILIES
from loopback_hub import serving
from tierexport import pipeline
from tierexport.base.errors import MachineError, PlanError, SourceError
from tierexport.base.records import Source
from tierexport.model import sketch
from tierexport.model.description import describe
from tierexport.model.folder import module_kind, module_settings, modules
from tierexport.model.weights import weight_files
from tierexport.recipe.planned import FormatPlan

NOT_OF_A_MODEL = ("architectures", "transformers_version", "dtype", "id2label", "label2id")
"""Keys of a saved config.json that decide no tensor."""


def described(folder: Path, place: Path, **more: Any) -> None:
    """A description of a model folder below `place`, called by the folder's name, of a model that is nowhere."""
    config = json.loads((folder / "config.json").read_text())
    heads = [module_settings(folder, each) for each in modules(folder) if module_kind(each) == "Dense"]
    pooled = json.loads((folder / "1_Pooling" / "config.json").read_text())
    description = {
        "source": "nobody/nowhere",
        "pooling": "lasttoken" if pooled.get("pooling_mode_lasttoken") else "mean",
        "max_tokens": 48,
        "config": {key: value for key, value in config.items() if value is not None and key not in NOT_OF_A_MODEL},
        "dense": heads,
        **more,
    }
    (place / "models").mkdir()
    (place / "models" / f"{folder.name}.toml").write_text(tomli_w.dumps(description))


def planned(model: Path | str, formats: Sequence[str], recipe: str = "three_tier") -> tuple[FormatPlan, ...]:
    return pipeline.plan(RECIPES / f"{recipe}.toml", (f"model={model}", f"formats={json.dumps(formats)}")).formats


def by_name(plan: FormatPlan) -> Mapping[str, Any]:
    """All that a plan says of each tensor."""
    return {row.tensor.name: row for row in plan.rows}


@pytest.mark.usefixtures("_fast_converter", "_offline")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_plan_by_description_is_that_of_its_files(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(name)
    described(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    formats = ["torchao"] if FAMILIES[name].refused else ["gguf", "torchao"]
    for files, sketched in zip(planned(folder, formats), planned(folder.name, formats), strict=True):
        assert by_name(sketched) == by_name(files)
    if FAMILIES[name].refused:
        with pytest.raises(PlanError, match=FAMILIES[name].refused):
            planned(folder.name, ["gguf"])


@pytest.mark.usefixtures("_fast_converter", "_offline")
def test_minilm_s_description_plans_what_its_files_do(minilm: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ["gguf", "torchao"]
    files = planned(MINILM, formats)
    monkeypatch.setattr(sketch, "has_come", lambda _: False)
    made = pipeline.plan(RECIPES / "three_tier.toml")
    assert made.source.sketched and made.source.path != minilm.path
    assert [by_name(each) for each in made.formats] == [by_name(each) for each in files]


@pytest.mark.usefixtures("_offline")
def test_a_model_of_a_hub_finds_its_description() -> None:
    by_id, by_name = describe("intfloat/e5-small-v2", Path()), describe("e5-small-v2", Path())
    assert by_id.prompts == by_name.prompts == {"query": "query: ", "document": "passage: "}
    assert (by_id.revision, by_id.pooling) == (None, "mean")
    assert describe("intfloat/e5-small-v2@main", Path()).source == "intfloat/e5-small-v2@main"
    assert describe("sentence-transformers/all-MiniLM-L6-v2", Path()).config == describe("all-MiniLM-L6-v2", Path()).config
    assert describe("intfloat/e5-small", Path()).prompts == {}
    made = pipeline.plan(RECIPES / "int8.toml", ("model=intfloat/e5-small-v2",))
    assert made.source.sketched and made.source.name == "e5-small-v2"


@pytest.mark.usefixtures("_offline")
def test_a_plan_says_that_it_is_made_from_the_description(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(tiny_model, tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = ("plan", "int8", "--set", f"model={tiny_model.name}", "--set", 'formats=["torchao"]', "--json")
    done = run(*asked)
    assert done.exit_code == 0
    (fmt,) = json.loads(done.stdout)["formats"]
    count = f"{fmt['parameters']:,} parameters, {4 * fmt['parameters'] / 1e6:,.0f} MB in fp32"
    assert f"planned from its description alone, for its weights are not on this machine: {count}" in done.stderr


def test_weights_that_have_come_are_what_is_planned_and_only_they_are_built(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that has the model is not asked for a plan, and is for a build; then the files hold, whatever was described."""
    described(tiny_model, tmp_path, source="org/tiny")
    ask = (
        "import json, sys\nfrom pathlib import Path\nfrom tierexport import pipeline\n"
        "made = pipeline.plan(Path(sys.argv[1]), [f'model={sys.argv[2]}', 'formats=[\"torchao\"]'])\n"
        "print(json.dumps([made.source.sketched, made.source.revision, made.formats[0].bytes]))"
    )
    monkeypatch.chdir(tmp_path)
    with serving({"models/org/tiny": tiny_model}, tmp_path / "hub") as hub:
        recipe, name = str(RECIPES / "int8.toml"), tiny_model.name
        alone = hub.python(ask, recipe, name)
        assert alone[:2] == [True, None] and not hub.asked
        opened = hub.ask("from tierexport.model.source import open_source", "open_source(name)", name)
        assert not opened["sketched"] and any("model.safetensors" in path for path in hub.asked)
        assert hub.python(ask, recipe, name) == [False, opened["revision"], alone[2]]


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    ("source", "message"),
    [("pypi:nobody-s-model-of-nothing", "is not installed: pip install"), ("nobody/nowhere", "can't fetch nobody/nowhere")],
)
def test_nothing_is_built_from_a_description(
    source: str, message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(tiny_model, tmp_path, source=source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match=message):
        pipeline.build(RECIPES / "int8.toml", tmp_path / "out", [f"model={tiny_model.name}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "hiden_size": 64}, "unknown key config.hiden_size; did you mean 'hidden_size'"),
        ({"model_type": "elmo"}, "config.model_type = 'elmo' is no architecture that transformers has a class for"),
        ({"model_type": "bert", "num_hidden_layers": "six"}, "transformers can't make a bert"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    config: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(tiny_model, tmp_path, config=config)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        planned(tiny_model.name, ["torchao"])


def test_the_weights_of_a_sketch_take_no_room(tmp_path: Path) -> None:
    """30 GB by their length, and a header on the disk."""
    parameters = sketch.sketch(describe("Qwen3-Embedding-8B", tmp_path), tmp_path)
    written = (tmp_path / "model.safetensors").stat()
    assert written.st_size > 4 * parameters > 30e9
    assert 512 * written.st_blocks < 1e6
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]
