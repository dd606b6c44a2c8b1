"""A conversion is right, or it is refused: on tiny models of the kinds that public reports describe, through llama.cpp."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import odd_models as odd
from conftest import run
from tierexport.base.errors import InputError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Source
from tierexport.formats.gguf.convert import read_layout
from tierexport.formats.gguf.format import Gguf
from tierexport.model.encoder import open_model
from tierexport.model.reference import Reference
from tierexport.model.source import open_source
from tierexport.verify.conversion import check_conversion
from tierexport.verify.probes import probes


def _camembert(folder: Path, json_alone: bool) -> None:
    tokenizer = odd.unigram(folder, "Camembert", json_alone)
    ends = {"pad_token_id": 1, "bos_token_id": 5, "eos_token_id": 6, "max_position_embeddings": 130, "type_vocab_size": 1}
    odd.saved(folder, "Camembert", len(tokenizer), **ends)


def _added(folder: Path, family: str) -> None:
    if family == "Bert":
        odd.minilm_tokenizer(folder)
        tokenizer, more = transformers.AutoTokenizer.from_pretrained(folder), {}
    else:
        tokenizer, more = odd.unigram(folder), {"pad_token_id": 1, "max_position_embeddings": 130}
    odd.saved(folder, family, odd.with_added_tokens(tokenizer, folder), **more)


def _lowercased_first(folder: Path) -> None:
    odd.saved(folder, "Bert", odd.wordpiece(folder, lowercase=False))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, "do_lower_case": True}))


def _contradicted(folder: Path) -> None:
    """Transformers obeys tokenizer_config.json where tokenizer.json says otherwise."""
    odd.saved(folder, "Bert", odd.wordpiece(folder, lowercase=False))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))


def _old_layout(folder: Path) -> None:
    odd.saved(folder, "Bert", odd.minilm_tokenizer(folder))
    (folder / "0_Transformer").mkdir()
    for file in [each for each in folder.iterdir() if each.is_file() and each.name != "modules.json"]:
        file.rename(folder / "0_Transformer" / file.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))


def _roberta_with_wordpiece(folder: Path) -> None:
    odd.saved(folder, "Roberta", odd.minilm_tokenizer(folder), **{**odd.ROBERTA, "pad_token_id": 0})


def _in_a_model_with_a_head(folder: Path) -> None:
    rows = odd.minilm_tokenizer(folder)
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=rows, **odd.SIZES, **odd.WIDE)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    odd.describe(folder)


RIGHT: dict[str, Callable[[Path], Any]] = {
    "camembert": lambda folder: _camembert(folder, json_alone=False),
    "camembert, tokenizer.json alone": lambda folder: _camembert(folder, json_alone=True),
    "own WordPiece": lambda folder: odd.saved(folder, "Bert", odd.wordpiece(folder, lowercase=True)),
    "own WordPiece, cased": lambda folder: odd.saved(folder, "Bert", odd.wordpiece(folder, lowercase=False)),
    "own WordPiece, cased, vocab.txt alone": lambda folder: odd.saved(
        folder, "Bert", odd.wordpiece(folder, lowercase=False, vocabulary_alone=True)
    ),
    "lower-cased first": _lowercased_first,
    "files that contradict each other": _contradicted,
    "tokens added to BERT": lambda folder: _added(folder, "Bert"),
    "tokens added to XLM-R": lambda folder: _added(folder, "XLMRoberta"),
    "RoBERTa with WordPiece": lambda folder: _roberta_with_wordpiece(folder),
    "RoBERTa, own byte pairs": lambda folder: odd.saved(folder, "Roberta", odd.byte_pairs(folder), **odd.ROBERTA),
    "RoBERTa, own byte pairs, old files": lambda folder: odd.saved(
        folder, "Roberta", odd.byte_pairs(folder, old_files=True), **odd.ROBERTA
    ),
    "BERT with byte pairs": lambda folder: odd.saved(folder, "Bert", odd.byte_pairs(folder), pad_token_id=1),
    "Ernie": lambda folder: odd.saved(folder, "Ernie", odd.minilm_tokenizer(folder), use_task_id=True),
    "old layout": _old_layout,
    "in a model with a head": _in_a_model_with_a_head,
}  # fmt: skip
"""Each was refused, or came out wrong without a word."""


@pytest.mark.parametrize("kind", RIGHT)
def test_what_llama_cpp_runs_is_converted_right(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    RIGHT[kind](folder)
    source = open_source(str(folder))
    found = check_conversion(Gguf(), Gguf().unquantized(source), Reference(source))
    assert not found.failed, [(each.name, each.parting, each.cosine) for each in found.failed]
    named = {each.name for each in found.probes}
    assert {"capitals and accents", "blanks", "emoji", "the cut", "query prompt"} <= named
    assert ("added tokens 1" in named) == kind.startswith("tokens added")
    _assert_layers_matter(folder)


@pytest.mark.parametrize(
    ("languages", "required"),
    [
        (["ko"], True),
        (["en", "ko-KR"], True),
        (["kor"], True),
        (["Korean"], True),
        (["multilingual"], True),
        (["mul"], True),
        ([], False),
        (["en"], False),
        (["kok"], False),  # Konkani
        (["sw"], False),  # there are built-in texts of none of its languages
    ],
)
def test_hangul_is_asked_of_models_that_say_they_speak_korean(languages: list[str], required: bool, minilm: Source) -> None:
    (asked,) = (each for each in probes(replace(minilm, languages=tuple(languages)), 256) if each.name == "Korean")
    assert asked.required == required


def _assert_layers_matter(folder: Path) -> None:
    """With its layers at zero the model puts out other vectors: what passed was not passed by the token table alone."""
    texts = ["Paris is the capital of France.", "how do I bake bread without yeast"]
    file = next(folder.rglob("model.safetensors"))
    before = open_model(open_source(str(folder))).encode(texts)
    tensors = load_file(file)
    inside = [name for name in tensors if ".layer." in name and tensors[name].dim() == 2]
    save_file(
        {name: torch.zeros_like(each) if name in inside else each for name, each in tensors.items()}, file, {"format": "pt"}
    )
    after = open_model(open_source(str(folder))).encode(texts)
    assert inside and (before * after).sum(1).max() < 0.9


def test_an_output_head_that_no_embedding_uses_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    rows = odd.byte_pairs(folder)
    torch.manual_seed(1)
    more = {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 2}
    config = transformers.Qwen3Config(vocab_size=rows, **odd.SIZES, **odd.WIDE, **more)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    odd.describe(folder, {"pooling_mode_lasttoken": True})
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    source = open_source(str(folder))
    assert "output.weight" not in {tensor.name for tensor in read_layout(source).tensors}
    assert not check_conversion(Gguf(), Gguf().unquantized(source), Reference(source)).failed


# --- what is wrong is not built in silence


@pytest.fixture
def without_blanks(tmp_path: Path) -> Path:
    """An XLM-R whose tokenizer has no normalizer: line breaks and tabs are unknown tokens in llama.cpp."""
    folder = tmp_path / "odd-xlmr"
    tokenizer = odd.unigram(folder)
    odd.saved(folder, "XLMRoberta", len(tokenizer), pad_token_id=1, max_position_embeddings=130)
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**document, "normalizer": None}), "utf-8")
    return folder


def test_a_conversion_that_is_wrong_stops_the_build(without_blanks: Path, tmp_path: Path) -> None:
    sets = (f"model={without_blanks}", "rounding=nearest", 'formats=["gguf"]', "calibration.tokens=512")
    settings = [part for each in sets for part in ("--set", each)]
    arguments: list[str | Path] = ["build", "int8", "--out", tmp_path / "out", *settings]
    done = run(*arguments)
    assert done.exit_code == 2
    assert "probe 'blanks'" in done.stderr and "its tokens part from token" in done.stderr
    assert "in sentence-transformers, [" in done.stderr and "Likely cause: several blanks" in done.stderr
    assert not (tmp_path / "out").exists()

    done = run(*arguments, "--despite", "conversion", "--json")
    assert done.exit_code == 0, done.stderr
    conversion = json.loads((tmp_path / "out" / "manifest.json").read_text())["conversion"]
    assert not conversion["passed"] and [each["name"] for each in conversion["failed"]] == ["blanks"]
    for page in ("README.md", "report.html"):
        assert "blanks" in (tmp_path / "out" / page).read_text("utf-8"), page
    refused = run("publish", tmp_path / "out", "--to", f"dir:{tmp_path / 'hub'}")
    assert (
        refused.exit_code == 2
        and "conversion: the GGUF was built though llama.cpp reads it otherwise (blanks" in refused.stderr
    )

    (gguf,) = (tmp_path / "out" / "gguf").glob("*.gguf")
    verified = run("verify", shutil.copy(gguf, tmp_path / "theirs.gguf"), "--model", without_blanks, "--device", "cpu")
    assert "probe 'blanks': tokens part from token" in verified.stderr


def _config(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    document = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**document, **values}), "utf-8")


def _dense(folder: Path, **settings: Any) -> None:
    identity = {"in_features": 64, "out_features": 64, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    odd.describe(folder, more=(("2_Dense", "Dense"),))
    (folder / "2_Dense").mkdir()
    _config(folder / "2_Dense", "config.json", **{**identity, **settings})
    weights = {"linear.weight": torch.eye(64)} | ({"linear.bias": torch.ones(64)} if settings.get("bias") else {})
    save_file(weights, folder / "2_Dense" / "model.safetensors")


def _tokenizer(folder: Path, **values: Any) -> None:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document.update({key: value(document[key]) for key, value in values.items()})
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")


LOST: dict[str, Callable[[Path], None]] = {
    "pools by max, and llama.cpp": lambda folder: odd.describe(folder, {"pooling_mode_max_tokens": True}),
    "pools by cls and mean, and": lambda folder: odd.describe(
        folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    ),
    "pools by weightedmean": lambda folder: odd.describe(folder, {"pooling_mode": "weightedmean"}),
    "leaves its prompts out of pooling": lambda folder: _without_prompts(folder),
    "Dense head with a bias": lambda folder: _dense(folder, bias=True),
    "Dense head with an activation .*Tanh": lambda folder: _dense(
        folder, activation_function="torch.nn.modules.activation.Tanh"
    ),
    "has a LayerNorm module": lambda folder: odd.describe(folder, more=(("2_LayerNorm", "LayerNorm"),)),
    "keeps the first 32 dimensions": lambda folder: _config(folder, "config_sentence_transformers.json", truncate_dim=32),
    "cuts long texts at their beginning": lambda folder: _config(folder, "tokenizer_config.json", truncation_side="left"),
    "has the activation 'relu'": lambda folder: _config(folder, "config.json", hidden_act="relu"),
    "run as a decoder": lambda folder: _config(folder, "config.json", is_decoder=True),
    "leaves Chinese characters together": lambda folder: _tokenizer(
        folder, normalizer=lambda found: {**found, "handle_chinese_chars": False}
    ),
    "tokenizes a text as .CLS. the text .post_processor": lambda folder: _tokenizer(
        folder, post_processor=lambda found: {**found, "single": found["single"][:2]}
    ),
    "has 30,524 tokens, but its embedding table 30,522 rows": lambda folder: _two_more_tokens(folder),
}


def _without_prompts(folder: Path) -> None:
    odd.describe(folder, {"pooling_mode": "mean", "include_prompt": False})
    _config(folder, "config_sentence_transformers.json", prompts={"query": "query: "})


def _two_more_tokens(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[Q]", "[A]"])
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "bert"
    return odd.saved(folder, "Bert", odd.minilm_tokenizer(folder))


@pytest.mark.parametrize("message", LOST)
def test_what_a_gguf_cannot_carry_is_refused_by_name(message: str, plain_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_model, tmp_path / "model"))
    LOST[message](folder)
    source = open_source(str(folder))
    with pytest.raises(InputError, match=message) as raised:
        Gguf().tensors(source)
    assert "--set 'formats=[\"torchao\"]'" in str(raised.value)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, {"pooling_mode": "weightedmean"}]
)
def test_other_poolings_build_as_torchao(pooling: dict[str, Any], plain_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_model, tmp_path / "model"))
    odd.describe(folder, pooling)
    arguments = ("build", "f16", "--out", tmp_path / "out", "--set", f"model={folder}", "--json")
    assert "torchao is still possible" in run(*arguments).stderr
    done = run(*arguments, "--set", 'formats=["torchao"]')
    assert done.exit_code == 0, done.stderr
    st = import_sentence_transformers()
    texts = ["one text", "and another one of more words"]
    ours, theirs = (
        st.SentenceTransformer(str(each), device="cpu").encode(texts) for each in (tmp_path / "out/torchao", folder)
    )
    assert ours.shape == theirs.shape == (2, 128 if len(pooling) == 2 else 64)
    assert np.abs((ours * theirs).sum(1) - 1).max() < 1e-4


@pytest.mark.parametrize("saved", ["T5ForConditionalGeneration", "T5EncoderModel"])
def test_a_t5_encoder_is_what_sentence_transformers_loads(saved: str, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    rows = odd.minilm_tokenizer(folder)
    torch.manual_seed(1)
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}
    getattr(transformers, saved)(transformers.T5Config(vocab_size=rows, **sizes)).save_pretrained(folder)
    odd.describe(folder)
    arguments = ("--set", f"model={folder}", "--set", 'formats=["torchao"]', "--json")
    planned = json.loads(run("plan", "f16", *arguments).stdout)["formats"][0]["tensors"]
    assert not any("decoder" in each["name"] for each in planned)
    assert [each["name"] for each in planned if each["role"] == "token_embeddings"] == ["shared.weight"]
    for recipe, least in (("f16", 0.99999), ("int8", 0.999)):
        done = run("build", recipe, "--out", tmp_path / recipe, *arguments)
        assert done.exit_code == 0, done.stderr
        (result,) = (each for each in json.loads(done.stdout)["results"] if each["device"] == "cpu")
        assert result["cos_mean"] >= least


# --- folders


def test_positions_that_padding_takes_are_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tokenizer = odd.unigram(folder)
    odd.saved(folder, "XLMRoberta", len(tokenizer), pad_token_id=1, max_position_embeddings=130)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 130}))
    source = open_source(str(folder))
    assert source.max_tokens == 128
    done = run("plan", "int8", "--set", f"model={folder}", "--set", 'formats=["torchao"]')
    assert done.stderr.count("only 128 positions can be used: texts are cut at 128") == 1
    assert open_model(source).encode(["word " * 300]).shape == (1, 64)


def test_an_adapter_alone_names_its_base_model(plain_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_model, tmp_path / "adapter"))
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(InputError, match="is an adapter .LoRA. for org/base.*merge the two"):
        open_source(str(folder))


def test_a_model_that_is_no_transformer_says_so(plain_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_model, tmp_path / "model"))
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "sentence_transformers.models.StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match="begins with a StaticEmbedding module"):
        open_source(str(folder))
