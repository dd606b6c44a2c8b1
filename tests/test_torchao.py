"""The torchao folder: loaded by stock libraries where tierexport is not installed, packed for real, or fast."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor.utils import run_and_get_code

import tierexport
from conftest import RECIPES, Built, build, built_once, run
from tierexport import pipeline
from tierexport.base.errors import ArtifactError
from tierexport.formats.torchao.convert import config_of, quantize
from tierexport.formats.torchao.int4 import unpack_int4
from tierexport.formats.torchao.pack import pack_int4
from tierexport.formats.torchao.smooth import store_smoothed
from tierexport.metrics.similarity import cosines
from tierexport.recipe.schema import TorchaoSettings

TEXTS = ["How do I fix a flat tire?", "Quarks bind into protons.", "The bank raised its rates."]

STOCK = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
try:
    import tierexport
    raise SystemExit("tierexport can be imported here, so this proves nothing")
except ImportError:
    pass
folder, texts = sys.argv[1], json.loads(sys.argv[2])
vectors = SentenceTransformer(folder, device="cpu").encode(texts)
model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
batch = tokenizer(texts, padding=True, return_tensors="pt")
mask = batch["attention_mask"].unsqueeze(-1)
pooled = ((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)).detach().numpy()
kinds = sorted({type(p).__name__ for p in model.parameters()})
print(json.dumps([vectors.tolist(), pooled.tolist(), kinds]))
"""


def stock(folder: Path, texts: list[str], tmp_path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What sentence-transformers and transformers make of a folder, in an environment without tierexport.

    The environment is a new one; the libraries are lent to it by path, which, unlike their own
    site-packages, does not follow the .pth file through which tierexport is installed.
    """
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    lent = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    command = [str(environment / "bin" / "python"), "-c", STOCK, str(folder), json.dumps(texts)]
    done = subprocess.run(command, env=lent, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    vectors, pooled, kinds = json.loads(done.stdout.splitlines()[-1])
    return np.array(vectors, np.float32), np.array(pooled, np.float32), kinds


def test_the_portable_folder_loads_where_tierexport_is_not(three_tier: Built, tmp_path: Path) -> None:
    vectors, pooled, kinds = stock(three_tier.folder / "torchao", TEXTS, tmp_path)
    assert "IntxUnpackedToInt8Tensor" in kinds
    assert cosines(vectors, pooled).min() > 0.99999
    ours = tierexport.load(str(three_tier.folder / "torchao")).encode(TEXTS)
    assert cosines(vectors, ours).min() > 0.99999


def test_f16_reaches_fp32(f16: Built, tmp_path: Path) -> None:
    result = f16.results["torchao"]
    assert result["tokens_equal"] is True
    assert result["cos_mean"] >= 0.99999
    vectors, _, kinds = stock(f16.folder / "torchao", TEXTS, tmp_path)
    assert kinds == ["Parameter"]
    assert cosines(vectors, tierexport.load(str(f16.folder / "torchao")).encode(TEXTS)).min() > 0.99999


def test_packed_four_bit_layers_take_at_most_five_bits(packed: Built, f16: Built) -> None:
    """By the size of the file: against the same file with those layers at 16 bits."""
    layers = [each for each in packed.artifact("torchao")["tensors"] if each["type"] == "int4"]
    assert len(layers) == 37  # 36 in the layers, and the pooler
    values = sum(int(np.prod(each["shape"])) for each in layers)
    others = {each["name"]: each["bytes"] for each in f16.artifact("torchao")["tensors"]}
    table = next(each for each in packed.artifact("torchao")["tensors"] if each["role"] == "token_embeddings")
    expected_rest = data_bytes(f16) - sum(others[each["name"]] for each in [*layers, table])
    on_disk = data_bytes(packed) - table["bytes"] - expected_rest
    assert on_disk * 8 / values <= 5.0


def data_bytes(built: Built) -> int:
    """The weight file's size on disk, less its header (8 bytes of length, then that many of JSON)."""
    file = built.folder / "torchao" / "model.safetensors"
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")


def test_packed_runs_on_a_cpu_through_load(packed: Built) -> None:
    result = packed.results["torchao"]
    assert result["status"] == "ok"
    assert result["cos_mean"] > 0.985  # 0.9945 with GPTQ, 0.9728 rounded to nearest
    config = json.loads((packed.folder / "torchao" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"  # what the CUDA kernel multiplies
    assert "Int4WeightOnlyConfig" in json.dumps(config["quantization_config"])


def test_packed_is_loaded_by_stock_transformers(packed: Built) -> None:
    """It loads there, as torchao's own 4-bit tensor; running it takes the CUDA kernel."""
    from torchao.quantization import Int4Tensor
    from transformers import AutoModel

    model = AutoModel.from_pretrained(packed.folder / "torchao")
    weights = [parameter for parameter in model.parameters() if isinstance(parameter, Int4Tensor)]
    assert len(weights) == 37
    assert model.dtype == torch.bfloat16


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(1, 4), st.sampled_from([32, 64]), st.integers(0, 2**31))
def test_packing_rounds_to_the_nearest_code(rows: int, groups: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * size, generator=generator) * 10 ** float(torch.randn(1, generator=generator))
    packed = pack_int4(weight, size)
    assert packed.qdata.shape == (rows, groups * size // 2)
    assert packed.scale.shape == packed.zero_point.shape == (groups, rows)
    error = (unpack_int4(packed) - weight).abs().reshape(rows, groups, size)
    step = packed.scale.float().t().unsqueeze(-1)
    # Half a step, and what bfloat16 moves the ends of the grid by (8 codes of 2^-8 relative, twice).
    assert (error <= step * (0.5 + 17 * 2**-8) + weight.abs().max() * 2**-8).all()


def test_packing_survives_constant_rows() -> None:
    for value in (0.0, 1.0, -3.0):
        weight = torch.full((2, 64), value)
        assert (unpack_int4(pack_int4(weight, 32)) - weight).abs().max() <= abs(value) * 2**-8 + 1e-5


def test_low_level_packing_is_torchaos(packed: Built) -> None:
    """The nibbles are where the mslk kernel reads them: low half first, signed."""
    weight = torch.tensor([[-8.0, 7.0] * 16])
    assert pack_int4(weight, 32).qdata.view(torch.uint8).unique().tolist() == [0x78]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither a GGUF file, nor a folder with safetensors"):
        tierexport.load(str(tmp_path))


def test_a_damaged_folder_is_refused(three_tier: Built, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(three_tier.folder / "torchao", tmp_path / "torchao"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="can't be loaded"):
        tierexport.load(str(folder))
    assert run("inspect", folder).exit_code == 2


def test_values_beyond_fp16_are_refused(tiny_recipe: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = tiny_recipe.parent / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["embeddings.word_embeddings.weight"][7, 7] = 1e6
    save_file(tensors, weights)
    for name in ("gguf", "torchao"):
        done = run("build", tiny_recipe, "--out", tiny_recipe.parent / "out", "--set", f'formats=["{name}"]')
        assert done.exit_code == 2
        assert "has values beyond fp16's range" in done.stderr


# --- the layout "fast"

SETTINGS = TorchaoSettings(layout="fast")
FAST = RECIPES / "fast.toml"


@pytest.fixture(scope="module")
def fast(shared: Path, tiny_model: Path) -> Built:
    return built_once(shared, "fast", "fast.toml", "--set", f"model={tiny_model}")


def test_stock_libraries_open_the_fast_folder_and_agree_with_the_compiled_one(fast: Built, tmp_path: Path) -> None:
    vectors, _, kinds = stock(fast.folder / "torchao", TEXTS, tmp_path)
    assert {"Int8Tensor", "IntxUnpackedToInt8Tensor"} <= set(kinds)
    compiled = tierexport.load(str(fast.folder / "torchao"))
    assert cosines(compiled.encode(TEXTS), vectors).min() > 0.9999  # a sum in another order may round an input to its neighbour
    result = fast.results["torchao"]
    assert result["status"] == "ok"
    assert result["cos_mean"] > 0.995


def test_batches_of_every_shape_share_what_was_compiled(fast: Built) -> None:
    """One graph for a text alone, and one for any number of texts of any length."""
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model = tierexport.load(str(fast.folder / "torchao"))
    for texts in (TEXTS, TEXTS[:2], [" ".join(TEXTS)] * 5, ["a"] * 7, ["one alone"], [" ".join(TEXTS)]):
        model.encode(texts)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2


def test_weights_are_constants_of_what_is_compiled(fast: Built) -> None:
    """Those that are given to the kernels anew at each call are packed for them anew, too."""
    torch._dynamo.reset()
    _, code = run_and_get_code(tierexport.load(str(fast.folder / "torchao")).encode, TEXTS)
    assert "_frozen_param" in "".join(code)


def test_a_fast_files_bytes_are_the_plans(fast: Built) -> None:
    tensors = fast.artifact("torchao")["tensors"]
    assert sum(each["bytes"] for each in tensors) == data_bytes(fast)
    layers = {each["type"] for each in tensors if each["layer"] is not None and len(each["shape"]) == 2}
    assert layers == {"int8_dynamic"}
    done = run("inspect", fast.folder, "--json")
    assert '"int8_dynamic"' in done.stdout


def test_a_tier_may_leave_inputs_as_they_are(tiny_model: Path) -> None:
    (planned,) = pipeline.plan(FAST, [f"model={tiny_model}", "tiers.all.torchao=int8"]).formats
    assert {row.type for row in planned.rows} == {"int8", "float32"}


def test_columns_that_stand_out_are_evened_out() -> None:
    """Against torchao's own rounding of the same matrix, by what comes out of the product."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator)
    inputs[:, :3] *= 40
    module = torch.nn.Linear(64, 32)
    exact, theirs = module(inputs), torch.nn.Linear(64, 32)
    theirs.load_state_dict(module.state_dict())
    quantize(theirs, "int8_dynamic", config_of("int8_dynamic", SETTINGS), SETTINGS)
    store_smoothed(module, inputs, SETTINGS)
    ours, plain = ((each(inputs) - exact).square().mean() for each in (module, theirs))
    assert ours < 0.2 * plain


def test_without_a_compiler_it_says_what_to_do(fast: Built) -> None:
    with torch._inductor.config.patch("cpp.cxx", (None, "no-such-compiler")), pytest.raises(ArtifactError, match="install g"):
        tierexport.load(str(fast.folder / "torchao"))


def test_a_fast_build_is_the_same_again(fast: Built, tiny_model: Path, tmp_path: Path) -> None:
    again = build(FAST, tmp_path / "out", "--set", f"model={tiny_model}")
    ours, theirs = ((each.folder / "torchao" / "model.safetensors").read_bytes() for each in (again, fast))
    assert ours == theirs
