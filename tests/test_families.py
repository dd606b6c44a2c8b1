"""Model families, as tiny random models with real tokenizers of their kind: the table of families.py, and single questions."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import RECIPES, ROOT, build, encoded, run
from families import FAMILIES, LEFT_OUT, page
from odd_models import lines
from tierexport import pipeline
from tierexport.artifact.verdicts import Conversion
from tierexport.base.errors import SourceError
from tierexport.base.records import NO_IMATRIX, Source, Text
from tierexport.datasets.calibration import every_text
from tierexport.formats import formats_of
from tierexport.formats.export import export
from tierexport.formats.gguf import convert
from tierexport.formats.gguf.choices import GgufChoices
from tierexport.formats.gguf.format import Gguf
from tierexport.formats.gguf.imatrix import read_imatrix
from tierexport.formats.gguf.write import Unquantized
from tierexport.formats.job import Job
from tierexport.metrics.similarity import cosines
from tierexport.model.encoder import open_model
from tierexport.model.reference import Reference
from tierexport.model.roles import UNQUANTIZED_ROLE
from tierexport.model.source import open_source
from tierexport.quantize.passes import layer_modules
from tierexport.recipe.planned import Artifact
from tierexport.search.trial import TrialModel
from tierexport.verify.conversion import LEAST_COSINE
from tierexport.verify.opened import Judged, OpenArtifact
from tierexport.verify.probes import probes
from tierexport.verify.probing import ask_probes

MOST_LOST = 0.3
"""Beyond, an artifact is not the model: a random one's is at 1."""

EXPORTS = [
    (name, fmt) for name, family in FAMILIES.items() for fmt in ("gguf", "torchao") if not (fmt == "gguf" and family.refused)
]
REFUSED = [name for name, family in FAMILIES.items() if family.refused]

SENTENCES = 40
"""How many calibration texts rounding is judged on; they were used to round, and that is all right for a tiny model."""

WIDE: dict[str, Any] = {"initializer_range": 0.2}
"""As the tiny model's weights are drawn, so that vectors depend on the layers."""

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, **WIDE}


NOMIC = {
    "n_positions": 8192, "max_trained_positions": 2048, "activation_function": "swiglu", "causal": False,
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_emb_base": 1000,
}  # fmt: skip


@pytest.fixture
def _one_core() -> Iterator[None]:
    """Products this small are done before a second thread has begun: threads would only wait for each other."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(before)])
    yield
    os.sched_setaffinity(0, before)


def exported(folder: Path, fmt: str, recipe: str, out: Path, *settings: str) -> Artifact:
    """An artifact of a model by a recipe, without what a build does beside: checks, speed, pages."""
    sets = (f"model={folder}", f'formats=["{fmt}"]', "calibration.tokens=2000", *settings)
    plan = pipeline.plan(RECIPES / f"{recipe}.toml", sets)
    ((planned, one),) = zip(plan, formats_of(plan.recipe), strict=True)
    return export(one, Job(planned, plan, one.calibrated(planned, plan)), out)


def loss(artifact: Artifact, reference: Reference) -> float:
    """One less the mean cosine to fp32's vectors."""
    texts = lines()[:: len(lines()) // SENTENCES]
    with closing(OpenArtifact(Judged(artifact.format, artifact.path), "cpu", reference)) as opened:
        pair = [each.encode("texts", "passage", texts) for each in (reference, opened)]
    return 1 - float(cosines(*(np.asarray(each.vectors) for each in pair)).mean())


@pytest.mark.usefixtures("_one_core", "_fast_converter")
@pytest.mark.parametrize(("name", "fmt"), EXPORTS)
def test_a_family_agrees_with_fp32_and_gains_by_error_feedback(
    name: str, fmt: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    reference = Reference(open_source(str(folder)))
    whole = exported(folder, fmt, "f16", tmp_path / "f16")
    with closing(OpenArtifact(Judged(fmt, whole.path), "cpu", reference)) as opened:
        found = Conversion(ask_probes(opened, probes(reference.source, reference.max_tokens)), LEAST_COSINE)
    assert not found.failed, [(each.name, each.parting, each.cosine) for each in found.failed]

    rounded = exported(folder, fmt, "four_bit", tmp_path / "gptq", "rounding=gptq")
    nearest = exported(folder, fmt, "four_bit", tmp_path / "nearest", "rounding=nearest")
    matrices = [row for row in rounded.plan.rows if row.tensor.layer is not None and row.type != whole_type(fmt)]
    if fmt == "torchao":
        layers = layer_modules(reference.model("cpu").transformers_model)
        assert len(matrices) == sum(isinstance(each, torch.nn.Linear) for layer in layers for each in layer.modules())
    left = rounded.plan.to_nearest
    assert left == FAMILIES[name].nearest.get(fmt, 0)
    lost = [loss(each, reference) for each in (rounded, nearest)]
    assert lost[1] < MOST_LOST
    assert lost[0] < lost[1]


def whole_type(fmt: str) -> str:
    """The type of what a format never quantizes."""
    return {"gguf": "F32", "torchao": "float32"}[fmt]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_of_a_family_matter(name: str, folder_of: Callable[[str], Path]) -> None:
    """With its layers' matrices at zero the model puts out other vectors: what agrees does not by the token table alone."""
    model = open_model(open_source(str(folder_of(name))))
    before = model.encode(lines()[:4])
    for layer in layer_modules(model.transformers_model):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.zero_()
    assert (before * model.encode(lines()[:4])).sum(1).max() < 0.8


@pytest.mark.usefixtures("_one_core", "_fast_converter")
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_layers_that_a_search_does_not_run_again_change_nothing(name: str, folder_of: Callable[[str], Path]) -> None:
    """However layers hand on what they make: matrices of the last one rounded, with and without those before run again."""
    source = open_source(str(folder_of(name)))
    tensors = [each for each in Gguf().tensors(source) if each.role != UNQUANTIZED_ROLE]
    texts = [Text(line, "passage") for line in lines()[:12]]
    trial = TrialModel(open_model(source), texts, tensors, NO_IMATRIX, GgufChoices(), Unquantized(source))
    layers = layer_modules(trial.model.transformers_model)
    last = [each.name for each in tensors if each.layer == len(layers) - 1]
    values = {name: trial.nearest(name, "Q4_0") for name in last}
    expected = trial.moves(values)
    assert np.abs(expected).max() > 1e-3
    with trial.beyond(layers[:-1]):
        np.testing.assert_allclose(trial.moves(values), expected, atol=1e-6)
    np.testing.assert_array_equal(trial.moves(values), expected)  # the layers are back


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_llama_cpp_does_not_run_is_refused_at_once(
    name: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its config.json: neither is the converter started, nor a weight read."""
    monkeypatch.setattr(convert, "subprocess", None)
    folder = folder_of(name)
    done = run("plan", "f16", "--set", f"model={folder}")
    assert done.exit_code == 2
    assert FAMILIES[name].refused in done.stderr and "torchao is still possible" in done.stderr


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_family_that_transformers_lacks_is_refused_when_it_is_opened(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config, message = LEFT_OUT[name]
    stated = {**json.loads((folder / "config.json").read_text()), "auto_map": {"AutoModel": "theirs.Model"}, **config}
    (folder / "config.json").write_text(json.dumps(stated))
    with pytest.raises(SourceError, match=message):
        open_source(str(folder))


def test_the_page_of_families_is_the_table_s() -> None:
    assert (ROOT / "docs/models.md").read_text("utf-8") == page(), "make docs writes it anew"


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece Unigram tokenizer, trained on the calibration texts, many languages among them."""
    import sentencepiece
    from transformers import XLMRobertaTokenizer

    folder = tmp_path_factory.mktemp("unigram")
    texts = [text.text for text in every_text("builtin")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "spm"), vocab_size=2000, model_type="unigram",
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spm.model").rename(folder / "sentencepiece.bpe.model")
    (folder / "spm.vocab").unlink()
    XLMRobertaTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
@pytest.mark.parametrize("with_spm_file", [True, False])
def test_sentencepiece_models_agree_with_fp32(
    kind: str, with_spm_file: bool, unigram: Path, minilm: Source, tmp_path: Path
) -> None:
    """A Bert with such a tokenizer is what the official converter alone refuses (multilingual-e5-small)."""
    import transformers

    folder = Path(shutil.copytree(unigram, tmp_path / "model"))
    if not with_spm_file:
        (folder / "sentencepiece.bpe.model").unlink()
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        shutil.copy(minilm.path / name, folder)
    shutil.copytree(minilm.path / "1_Pooling", folder / "1_Pooling")
    config = getattr(transformers, f"{kind}Config")(vocab_size=2002, pad_token_id=1, max_position_embeddings=514, **SIZES)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    built = build(RECIPES / "f16.toml", tmp_path / "out", "--set", f"model={folder}")
    for result in built.results.values():
        assert result["tokens_equal"] is True
        assert result["cos_mean"] > 0.99999
    positions = next(t["shape"] for t in built.artifact("gguf")["tensors"] if t["name"] == "position_embd.weight")
    assert positions == [512 if kind == "XLMRoberta" else 514, 64]  # XLM-R's first two rows are padding


def test_a_plain_transformers_folder_takes_its_pooling_from_a_description(tiny_model: Path, tmp_path: Path) -> None:
    """No modules.json: a file in models/ beside the recipe says how to pool, in every artifact."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "plain"))
    for path in (folder / "modules.json", folder / "sentence_bert_config.json"):
        path.unlink()
    shutil.rmtree(folder / "1_Pooling")
    (tmp_path / "models").mkdir()
    description = '[prompts]\nquery = "find: "\n'
    (tmp_path / "models" / "mine.toml").write_text(f'source = "../plain"\npooling = "cls"\nmax_tokens = 99\n{description}')
    recipe = (RECIPES / "f16.toml").read_text().replace('"all-MiniLM-L6-v2"', '"mine"')
    (tmp_path / "recipe.toml").write_text(recipe)
    built = build(tmp_path / "recipe.toml", tmp_path / "out")
    assert built.manifest["model"]["pooling"] == "cls"
    assert {result["cos_mean"] > 0.99999 for result in built.results.values()} == {True}
    source = open_source("mine", tmp_path)
    model = open_model(source)
    assert (model.max_seq_length, model.prompts["query"]) == (99, "find: ")
    assert encoded(model, ["word " * 300], tmp_path).lengths[0] == 99


def test_sharded_safetensors_build_as_one_file(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = Path(shutil.copytree(tiny_model, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    settings = ("--set", 'formats=["gguf"]', "--set", "rounding=nearest")
    whole = build(RECIPES / "int8.toml", tmp_path / "whole", "--set", f"model={tiny_model}", *settings)
    sharded = build(RECIPES / "int8.toml", tmp_path / "parts", "--set", f"model={folder}", *settings)
    assert whole.results["gguf"]["cos_mean"] == sharded.results["gguf"]["cos_mean"]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("NomicBert", SIZES),  # its checkpoints fuse what its modules hold apart
        ("DistilBert", {"dim": 64, "hidden_dim": 256, "n_layers": 2, "n_heads": 2, **WIDE}),
    ],
)
def test_importance_finds_its_tensor_whatever_the_checkpoint_calls_it(
    name: str, sizes: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = family(name, sizes, tiny_model, tmp_path / "model")
    if name == "NomicBert":  # what the hub's own file states, and the converter asks for
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **NOMIC}))
    built = build(RECIPES / "four_bit.toml", tmp_path / "out", "--set", f"model={folder}", "--set", 'formats=["gguf"]')
    assert built.results["gguf"]["cos_mean"] > 0.9
    means = read_imatrix(tmp_path / "out" / "imatrix.gguf").means
    quantized = {
        each["name"] for each in built.artifact("gguf")["tensors"] if each["layer"] is not None and each["role"] != "kept"
    }
    assert set(means) == quantized


def family(name: str, sizes: dict[str, Any], tiny_model: Path, folder: Path) -> Path:
    """A random model of a family with MiniLM's tokenizer."""
    import torch
    import transformers

    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=30522, **sizes)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    return folder


def test_a_table_with_a_scale_of_its_own_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    """Gemma scales its token table by a buffer that transformers leaves at random where the table is quantized."""
    sizes = {**SIZES, "num_key_value_heads": 1, "head_dim": 32}
    folder = family("Gemma3Text", sizes, tiny_model, tmp_path / "model")
    done = run("plan", RECIPES / "int8.toml", "--set", f"model={folder}", "--set", 'formats=["torchao"]', "--json")
    assert done.exit_code == 0, done.stderr
    (plan,) = json.loads(done.stdout)["formats"]
    table = next(each for each in plan["tensors"] if each["name"] == "embed_tokens.weight")
    assert (table["role"], table["type"]) == ("kept", "float32")


def test_a_module_that_a_gguf_cannot_hold_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import LayerNorm

    model = SentenceTransformer(str(tiny_model), device="cpu")
    model.append(LayerNorm(64))
    model.save_pretrained(str(tmp_path / "normed"), create_model_card=False)
    done = run("plan", RECIPES / "int8.toml", "--set", f"model={tmp_path / 'normed'}")
    assert done.exit_code == 2
    assert "has a LayerNorm module, which a GGUF can't hold" in done.stderr
