"""The token table's error feedback: what it takes for important, what it gains, and that it survives a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from conftest import Built, build
from tierexport.base.records import Floats, Source, Tensor, Text
from tierexport.base.stages import Stages
from tierexport.datasets.calibration import calibration_texts
from tierexport.formats.gguf.read import WholeArrays
from tierexport.model.encoder import open_model
from tierexport.model.source import open_source
from tierexport.quantize import layerwise, tables
from tierexport.quantize.codes import Codes
from tierexport.quantize.grids import GGUF_GRIDS
from tierexport.quantize.layerwise import round_layers
from tierexport.quantize.tables import round_tables
from tierexport.quantize.targets import Target

WORDS = "embeddings.word_embeddings.weight"


def test_the_metric_is_the_mean_of_exact_derivatives(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole Jacobian of each token's row, which takes a backward pass for every dimension."""
    model, texts = open_model(open_source(str(tiny_model))), calibration_texts("builtin", 60)
    monkeypatch.setattr(tables, "within", lambda _, texts, __: texts)
    (found,) = tables.table_metrics(model, texts * 8, [WORDS]).values()  # each repetition by other directions
    exact = torch.stack([exact_moments(model, text) for text in texts]).sum(0)
    assert alike(found, exact) > 0.98
    assert alike(torch.eye(len(exact)), exact) < 0.9


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine of two matrices."""
    return float((one * other).sum() / one.norm() / other.norm())


def exact_moments(model: Any, text: Text) -> torch.Tensor:
    """The sum of JᵀJ over the tokens of a text, by a backward pass for each dimension of its vector."""
    features = {name: each for name, each in model.preprocess([text.text]).items() if torch.is_tensor(each)}
    rows = model.transformers_model.get_parameter(WORDS)[features["input_ids"]].detach().requires_grad_()
    table = model.transformers_model.get_submodule(WORDS.removesuffix(".weight"))
    handle = table.register_forward_hook(lambda *_: rows)
    try:
        pooled = normalize(model(dict(features))["sentence_embedding"], dim=-1)[0]
    finally:
        handle.remove()
    gradients = [torch.autograd.grad(each, rows, retain_graph=True)[0][0] for each in pooled]
    return torch.stack([each.T @ each for each in gradients]).sum(0)


def table_of(source: Source) -> Target:
    """The tiny model's table at Q4_0, and what ggml's own rounding leaves of it."""
    values: Floats = open_model(source).transformers_model.get_parameter(WORDS).detach().numpy()
    kind = gguf.GGMLQuantizationType.Q4_0
    plain: Floats = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    tensor = Tensor("token_embd.weight", "token_embeddings", None, values.shape)
    return Target(tensor, lambda: values, lambda: plain, GGUF_GRIDS["Q4_0"])


def test_vectors_change_less_than_by_nearest_rounding(tiny_model: Path) -> None:
    source = open_source(str(tiny_model))
    texts = calibration_texts("builtin", 120)
    target = table_of(source)
    done: list[int] = []
    (codes,) = round_tables(open_model(source), texts[:60], [target], done.append).values()
    assert done == [target.tensor.parameters]
    ours, plain = (loss(source, texts[60:], values) for values in (codes.values().numpy(), target.nearest()))
    assert ours < 0.85 * plain


def loss(source: Source, texts: list[Text], values: Floats) -> float:
    """Mean squared change of unit vectors that a table of these values makes."""
    read = [text.text for text in texts]
    model = open_model(source)
    before = model.encode(read, normalize_embeddings=True)
    model.transformers_model.get_parameter(WORDS).data = torch.from_numpy(values)
    return float(np.square(model.encode(read, normalize_embeddings=True) - before).sum(1).mean())


def test_a_table_that_is_done_is_not_done_again(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, texts = open_source(str(tiny_model)), calibration_texts("builtin", 20)
    seen: list[int] = []

    def counted(*given: Any) -> dict[str, Codes]:
        seen.append(1)
        return round_tables(*given)

    monkeypatch.setattr(layerwise, "round_tables", counted)
    found = [round_layers(open_model(source), texts, [table_of(source)], [], Stages(tmp_path), "key") for _ in range(2)]
    assert len(seen) == 1
    assert torch.equal(*(each.codes["token_embd.weight"].levels for each in found))


@pytest.fixture
def four_bit(tiny_recipe: Path, tmp_path: Path) -> Callable[..., Built]:
    def make(name: str, *more: str) -> Built:
        return build(tiny_recipe, tmp_path / name, "--set", "tiers.embeddings.bits=4", *more)

    return make


def test_both_formats_store_the_table_by_its_codes(four_bit: Callable[..., Built]) -> None:
    ours, plain = four_bit("gptq"), four_bit("nearest", "--set", "rounding=nearest")
    for name, table in {"gguf": "token_embd.weight", "torchao": WORDS}.items():
        (row,) = (each for each in ours.artifact(name)["tensors"] if each["name"] == table)
        assert row["rounding"] == "gptq"
        assert ours.artifact(name)["bytes"] == pytest.approx(plain.artifact(name)["bytes"], rel=1e-3)
    stored = [table_values(each) for each in (ours, plain)]
    assert np.isclose(stored[0], stored[1], atol=1e-6).mean() < 0.9


def table_values(built: Built) -> Floats:
    path = built.folder / built.artifact("gguf")["path"]
    (tensor,) = (each for each in WholeArrays(path).tensors if each.name == "token_embd.weight")
    found: Floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found
