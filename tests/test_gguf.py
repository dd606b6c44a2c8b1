"""The GGUF: byte for byte what llama-quantize writes, opened by every program that will open it."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from conftest import RECIPES, Built, encoded, run, through_llama
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Source
from tierexport.formats import formats_of
from tierexport.formats.gguf.convert import converted
from tierexport.formats.gguf.imatrix import read_imatrix
from tierexport.formats.gguf.read import WholeArrays, open_gguf
from tierexport.formats.gguf.write import write_gguf
from tierexport.formats.job import Job
from tierexport.metrics.similarity import cosines
from tierexport.model.encoder import open_model
from tierexport.quantize.targets import NOTHING_ROUNDED
from tierexport.recipe.plan import make_plan
from tierexport.recipe.read import parse_recipe
from tierexport.recipe.schema import Recipe
from tierexport.verify.fidelity import same_tokens


def test_our_reader_reads_what_ggufs_own_does(minilm: Source) -> None:
    """With the strings of a vocabulary in one piece."""
    path = converted(minilm)
    ours, theirs = WholeArrays(path), gguf.GGUFReader(path)
    assert ours.fields.keys() == theirs.fields.keys()
    assert len(ours.fields["tokenizer.ggml.tokens"].contents()) == 30522
    for name, field in theirs.fields.items():
        assert (ours.fields[name].contents(), ours.fields[name].types) == (field.contents(), field.types), name
    assert [(each.name, each.data_offset) for each in ours.tensors] == [
        (each.name, each.data_offset) for each in theirs.tensors
    ]


def test_a_vocabulary_that_goes_beyond_the_file_is_refused(minilm: Source, tmp_path: Path) -> None:
    with converted(minilm).open("rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(100_000))
    with pytest.raises(ArtifactError, match="is damaged: .* goes beyond the file"):
        open_gguf(tmp_path / "cut.gguf")


def uniform(native: str, roles: list[str], rest: list[str]) -> Recipe:
    """A GGUF recipe with some roles at one native type and the rest at Q8_0."""
    tiers = {"named": {"bits": 4, "gguf": native}, "rest": {"bits": 8}}
    rules = [{"tier": "named", "roles": roles}, {"tier": "rest", "roles": rest}]
    document = {"name": native, "model": "all-MiniLM-L6-v2", "formats": ["gguf"], "tiers": tiers, "rules": rules}
    return parse_recipe(document, Path())


EVERYTHING = ["embeddings", "attention", "ffn", "heads"]
BUT_DOWN = ["embeddings", "attention", "ffn_up", "ffn_gate", "heads"]


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("native", "roles", "rest", "arguments"),
    [
        *(
            (native, EVERYTHING, ["other"], ["--pure", "{in}", "{out}", native])
            for native in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")
        ),
        *(
            (native, ["ffn_down"], BUT_DOWN, ["--tensor-type", f"ffn_down={native.lower()}", "{in}", "{out}", "Q8_0"])
            for native in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
        ),
    ],
)  # fmt: skip
def test_tensors_are_byte_identical_to_llama_quantize(
    native: str, roles: list[str], rest: list[str], arguments: list[str],
    minilm: Source, three_tier: Built, tool: Callable[[str], Path], tmp_path: Path,
) -> None:  # fmt: skip
    """With our imatrix, which llama-quantize has to accept for that."""
    recipe = uniform(native, roles, rest)
    imatrix = three_tier.folder / "imatrix.gguf"
    made = make_plan(recipe, minilm, formats_of(recipe))
    (plan,) = made.formats
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write_gguf(Job(plan, made, read_imatrix(imatrix)), NOTHING_ROUNDED, ours, lambda _: None)
    places = {"{in}": str(converted(minilm)), "{out}": str(theirs)}
    command = [str(tool("llama-quantize")), "--imatrix", str(imatrix), *(places.get(each, each) for each in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "have 36 importance matrix entries" in done.stdout
    mine, expected = tensors(ours), tensors(theirs)
    assert mine.keys() == expected.keys()
    assert sum(kind == native for kind, _ in mine.values()) == (6 if roles == ["ffn_down"] else 37)
    different = [name for name in mine if mine[name] != expected[name]]
    assert different == []


def test_the_conversion_is_the_official_ones(minilm: Source) -> None:
    """Every fp32 tensor of the converted file equals the source's, under the names of gguf's own map."""
    from safetensors.numpy import load_file

    weights = load_file(minilm.path / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 6)
    expected = {names.get_name(name, (".weight", ".bias")): value for name, value in weights.items()}
    found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(converted(minilm)).tensors}
    assert len(found) == 101
    for name, value in found.items():
        assert np.array_equal(value.reshape(expected[name].shape), expected[name])


def test_metadata_is_complete(three_tier: Built, minilm: Source) -> None:
    reader = gguf.GGUFReader(three_tier.folder / three_tier.artifact("gguf")["path"])
    expected = {
        "general.architecture": "bert",
        "general.file_type": gguf.LlamaFileType.MOSTLY_F16,
        "general.quantization_version": 2,
        "general.license": "apache-2.0",
        "general.source.huggingface.repository": "sentence-transformers/all-MiniLM-L6-v2",
        "bert.pooling_type": gguf.PoolingType.MEAN,
        "bert.block_count": 6,
        "quantize.imatrix.entries_count": 36,
        "quantize.imatrix.chunks_count": gguf.GGUFReader(three_tier.folder / "imatrix.gguf")
        .fields["imatrix.chunk_count"]
        .contents(),
        "tierexport.recipe": "three_tier",
        "tierexport.source.digest": minilm.digest,
    }
    assert {key: reader.fields[key].contents() for key in expected} == expected
    assert "tokenizer.ggml.tokens" in reader.fields
    assert reader.fields["quantize.imatrix.dataset"].contents().startswith("builtin-")


def test_f16_reaches_fp32(f16: Built) -> None:
    result = f16.results["gguf"]
    assert result["tokens_equal"] is True
    assert result["cos_mean"] >= 0.99999
    assert result["top10_retention"] >= 0.99


def test_llama_cpp_python_opens_it(three_tier: Built, minilm: Source, tmp_path: Path) -> None:
    from llama_cpp import Llama

    texts = ["How do I fix a flat tire?", "Quarks bind into protons."]
    model = Llama(str(three_tier.folder / three_tier.artifact("gguf")["path"]), embedding=True, verbose=False)
    found = np.array([model.embed(text) for text in texts], np.float32)
    similar = cosines(encoded(open_model(minilm), texts, tmp_path).vectors, found)
    assert similar.min() > 0.98


def test_llama_embedding_opens_it(three_tier: Built, tool: Callable[[str], Path], minilm: Source, tmp_path: Path) -> None:
    path = three_tier.folder / three_tier.artifact("gguf")["path"]
    text = "How do I fix a flat tire?"
    # On exit the tool drops what its log queue of 512 entries still holds (llama.cpp issue 22142). Each number is an
    # entry, so by the time the third vector is queued the first has been written.
    command = [str(tool("llama-embedding")), "-m", str(path), "-p", "\n".join([text] * 3), "--embd-output-format", "raw"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = np.array([done.stdout.splitlines()[0].split()], np.float32)
    assert cosines(encoded(open_model(minilm), [text], tmp_path).vectors, found).min() > 0.98


def test_texts_are_cut_as_the_reference_cuts_them(f16: Built, minilm: Source, tmp_path: Path) -> None:
    """At 256 tokens, the closing token kept: by default llama.cpp would take 512."""
    texts = ["a long text about rivers " * 100, "a short one"]
    model = open_model(minilm)
    reference = encoded(model, texts, tmp_path)
    found = through_llama(f16.folder / f16.artifact("gguf")["path"], texts, model.max_seq_length, tmp_path)
    assert found.lengths[0] == 256
    assert same_tokens(reference, found).all()
    assert cosines(reference.vectors, found.vectors).min() > 0.99999


def test_a_damaged_file_is_reported_not_crashed_on(f16: Built, tmp_path: Path) -> None:
    whole = (f16.folder / f16.artifact("gguf")["path"]).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="cut.gguf: llama.cpp failed before the first text"):
        through_llama(tmp_path / "cut.gguf", ["text"], 256, tmp_path)
    assert run("inspect", tmp_path / "cut.gguf").exit_code == 2


def test_a_text_beyond_the_context_is_reported(f16: Built, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a text has 602 tokens, but the model was trained for 512"):
        through_llama(f16.folder / f16.artifact("gguf")["path"], ["river " * 600], 1000, tmp_path)


@pytest.mark.parametrize(
    ("sent", "told", "advised"),
    [
        (signal.SIGKILL, "was killed by signal 9", ""),
        (signal.SIGSTOP, "hung", ""),
        (signal.SIGILL, "was killed by signal 4", "CFLAGS=-mno-amx-int8 CXXFLAGS=-mno-amx-int8 pip install"),
    ],
    ids=["dies", "hangs", "refused"],
)
def test_a_worker_that_dies_or_hangs_half_way_is_reported_with_its_text(
    f16: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, told: str, advised: str
) -> None:
    monkeypatch.setattr("tierexport.formats.gguf.worker_client.STALLED_SECONDS", 2)
    texts = [f"text {number} " + "about rivers " * 100 for number in range(400)]
    workers = []

    class Watched(subprocess.Popen[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            workers.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)

    def harm() -> None:
        while not (tmp_path / "done").is_file() or (tmp_path / "done").stat().st_size < 5:
            time.sleep(0.01)
        workers[0].send_signal(sent)

    harming = threading.Thread(target=harm)
    harming.start()
    with pytest.raises(ArtifactError) as failed:
        through_llama(f16.folder / f16.artifact("gguf")["path"], texts, 256, tmp_path)
    harming.join()
    done = (tmp_path / "done").stat().st_size
    assert 5 <= done < 400
    assert f"llama.cpp {told} at text {done + 1} of 400 ('text {done} about rivers" in str(failed.value)
    assert advised in str(failed.value)


def test_an_architecture_that_llama_cpp_lacks_leaves_torchao(tmp_path: Path, minilm: Source) -> None:
    """MPNet: a clear refusal of the GGUF, and a torchao folder on request."""
    model = mpnet(tmp_path / "mpnet", minilm)
    out = tmp_path / "out"
    refused = run("build", RECIPES / "int8.toml", "--set", f"model={model}", "--out", out)
    assert refused.exit_code == 2
    assert "is an MPNet, whose attention adds a bias by distance, and llama.cpp has no such layers" in refused.stderr
    assert "--set 'formats=[\"torchao\"]'" in refused.stderr
    assert not out.exists()
    built = run(
        "build", RECIPES / "int8.toml", "--set", f"model={model}", "--set", 'formats=["torchao"]', "--out", out, "--json"
    )
    assert built.exit_code == 0, built.stderr
    (artifact,) = json.loads(built.stdout)["manifest"]["artifacts"]
    int8 = [each["role"] for each in artifact["tensors"] if each["type"] == "int8"]
    assert sorted(set(int8)) == ["attention_k", "attention_output", "attention_q", "attention_v", "ffn_down", "ffn_up",
                                 "head", "token_embeddings"]  # fmt: skip


def mpnet(folder: Path, minilm: Source) -> Path:
    import shutil

    from transformers import MPNetConfig, MPNetModel

    shutil.copytree(minilm.path, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    MPNetModel(MPNetConfig(vocab_size=30522, **sizes)).save_pretrained(folder)
    return folder


def test_a_dense_head_that_llama_cpp_would_drop_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense
    from torch.nn import Identity

    model = SentenceTransformer(str(tiny_model), device="cpu")
    transformer, pooling, normalize = model
    head = Dense(64, 32, bias=False, activation_function=Identity())
    model = SentenceTransformer(modules=[transformer, pooling, head, normalize], device="cpu")
    model.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    refused = run("plan", RECIPES / "int8.toml", "--set", f"model={tmp_path / 'dense'}")
    assert refused.exit_code == 2
    assert "has a Dense head after pooling, which llama.cpp drops for bert" in refused.stderr
