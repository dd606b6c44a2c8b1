"""The rounding of what quantized matrices are multiplied with, beside gguf's own Q8_0 and beside what llama.cpp computes."""

from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tierexport.base.records import Source
from tierexport.formats.gguf.types import INPUT_BLOCK
from tierexport.model.batches import prompted
from tierexport.search.activations import rounded_inputs
from tierexport.search.study import Study


def test_blocks_of_32_are_rounded_as_ggufs_q8_0() -> None:
    inputs = np.random.default_rng(3).normal(size=(50, 96)).astype(np.float32)
    inputs[4, 32:64] = 0
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(inputs, kind), kind)
    np.testing.assert_allclose(rounded_inputs(torch.from_numpy(inputs), 32), expected, rtol=1e-6)


def test_blocks_of_256_share_a_scale() -> None:
    """Of 512 values the first half has 255 levels up to 127, the other up to its own largest."""
    inputs = torch.cat([torch.linspace(-127, 127, 256), torch.linspace(-1, 0.5, 256)])
    rounded = rounded_inputs(inputs, 256)
    np.testing.assert_array_equal(rounded[:256], inputs[:256].round())
    assert len(np.unique(rounded[256:])) == 127 + 64 + 1
    np.testing.assert_allclose(rounded[256:], inputs[256:], atol=0.5 / 127 + 1e-6)


@pytest.mark.parametrize("native", ["Q8_0", "Q6_K"])
def test_trials_lose_what_llama_cpp_loses(native: str, minilm: Source, tmp_path: Path) -> None:
    """MiniLM with all matrices that a type fits at it, rounded to nearest; with inputs as they are a trial would see a part."""
    study = Study(str(minilm.path))
    groups = [each for each in study.groups if native in each.bytes and each.layer is not None]
    rows = {tensor.name: study.trial.nearest(tensor.name, native) for group in groups for tensor in group.tensors}
    types = {group.name: native if group in groups else "F32" for group in study.groups}
    texts = prompted(study.trial.model.prompts, study.texts)
    with closing(study._plainly_rounded(types, tmp_path / "rounded.gguf")) as reader:
        actual = study.trial.loss(reader.encode(texts, "", study.source.max_tokens or 512, tmp_path).vectors).mean()
    blind, expected = (np.square(study.trial.moves(rows, block=each)).sum(1).mean() / 2 for each in (None, INPUT_BLOCK[native]))
    assert expected == pytest.approx(actual, rel=0.05)
    assert blind < 0.7 * actual
