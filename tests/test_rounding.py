"""Error feedback: what is packed is what was chosen, it beats nearest, and it survives what models hold."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tierexport
from conftest import RECIPES, Built, build, run
from tierexport import pipeline
from tierexport.base.records import Source, Tensor, Text
from tierexport.base.stages import Stages
from tierexport.datasets.calibration import calibration_texts
from tierexport.formats.gguf import ggml
from tierexport.model.batches import batches, prompted, real_rows, token_ids, within
from tierexport.model.encoder import open_model
from tierexport.model.placement import row_placements
from tierexport.model.source import open_source
from tierexport.quantize.codes import Codes
from tierexport.quantize.compiled import compiled_grid, storable
from tierexport.quantize.distill import distill
from tierexport.quantize.gptq import Request, curvature_of, gptq, objective
from tierexport.quantize.grids import GGUF_GRIDS, IQ4_NL_LEVELS, Affine, Grid, int4_grid
from tierexport.quantize.inputs import CORRECTION, CORRECTION_DAMPING, gathered
from tierexport.quantize.layerwise import round_layers
from tierexport.quantize.lesson import unread
from tierexport.quantize.packing import pack
from tierexport.quantize.passes import Passes, Step
from tierexport.quantize.rounding import round_matrices
from tierexport.quantize.targets import Rounded, Target

COLUMNS = 512
GRIDS = [*GGUF_GRIDS.values(), int4_grid(32, "portable"), int4_grid(64, "packed")]


@pytest.fixture(scope="module")
def hessian() -> torch.Tensor:
    """Inputs as a network has them: correlated, and some columns a hundred times as large as others."""
    torch.manual_seed(0)
    inputs = torch.randn(2000, COLUMNS) @ torch.randn(COLUMNS, COLUMNS) * torch.logspace(-1, 1, COLUMNS)
    return inputs.T @ inputs / len(inputs)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """Among ordinary rows: one of zeros, one that is constant, one with a block of zeros, and one outlier."""
    torch.manual_seed(1)
    values = torch.randn(48, COLUMNS) * 0.05
    values[3], values[7], values[5, :64], values[9, 100] = 0, 0.02, 0, 3
    return values


def rounded(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> Codes:
    (codes,) = round_matrices([requested(weight, hessian, grid)])
    return codes


def requested(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> Request:
    curvature = curvature_of(hessian)
    assert curvature is not None
    return Request(weight, curvature, grid)


def nearest(weight: torch.Tensor, hessian: torch.Tensor, native: str) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[native]
    importance = hessian.diagonal().numpy().copy()
    raw = np.concatenate(list(ggml.quantize(weight.numpy(), kind, importance)))
    return torch.from_numpy(gguf.quants.dequantize(raw, kind).astype(np.float32))


# --- grids, packing, error feedback


@pytest.mark.parametrize("native", GGUF_GRIDS)
def test_what_is_packed_is_what_was_chosen(native: str, weight: torch.Tensor, hessian: torch.Tensor) -> None:
    codes = rounded(weight, hessian, GGUF_GRIDS[native])
    raw = pack(codes)
    kind = gguf.GGMLQuantizationType[native]
    assert raw.shape == (len(weight), ggml.row_bytes(kind, COLUMNS))
    np.testing.assert_array_equal(gguf.quants.dequantize(raw, kind), codes.values().numpy())


@pytest.mark.parametrize("native", GGUF_GRIDS)
def test_every_code_of_a_type_can_be_packed(native: str) -> None:
    """Random levels, scales and offsets from one end of their range to the other."""
    grid = GGUF_GRIDS[native]
    generator = torch.Generator().manual_seed(2)
    shape = (64, 512 // grid.block)

    def draw(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high + 1, size, generator=generator).float()

    levels = torch.tensor(grid.table)[draw(0, 15, 64, 512).long()].float() if grid.table else draw(grid.low, grid.high, 64, 512)
    if grid.super_block == 1:
        scales, offsets, super_scales = torch.randn(shape, generator=generator).half().float(), torch.zeros(shape), None
        offsets = torch.randn(shape, generator=generator).half().float() if grid.affine else offsets
    else:
        super_scales = torch.rand(2, 64, 512 // (grid.block * grid.super_block), generator=generator).half().float()
        wide = super_scales.repeat_interleave(grid.super_block, 2)
        scales = wide[0] * draw(0 if grid.affine else -grid.largest_multiple, grid.largest_multiple, *shape)
        offsets = -(wide[1] * draw(0, 63, *shape)) if grid.affine else torch.zeros(shape)
    codes = Codes(grid, levels, scales, offsets, super_scales)
    np.testing.assert_array_equal(
        gguf.quants.dequantize(pack(codes), gguf.GGMLQuantizationType[native]), codes.values().numpy()
    )


def test_the_level_is_the_nearest_of_the_table() -> None:
    values = torch.linspace(-140, 130, 5001)
    levels = torch.tensor(IQ4_NL_LEVELS, dtype=torch.float32)
    found = GGUF_GRIDS["IQ4_NL"].levels(values)
    assert torch.equal((found - values).abs(), (levels[:, None] - values).abs().amin(0))


@pytest.mark.parametrize("native", GGUF_GRIDS)
def test_feedback_beats_ggmls_nearest(native: str, weight: torch.Tensor, hessian: torch.Tensor) -> None:
    codes = rounded(weight, hessian, GGUF_GRIDS[native])
    plain = nearest(weight, hessian, native)
    assert objective(weight, codes.values(), hessian) < 0.6 * objective(weight, plain, hessian)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}-{grid.precision}")
def test_compiled_code_reaches_what_torch_reaches(grid: Grid, weight: torch.Tensor, hessian: torch.Tensor) -> None:
    """The objective within 0.1 %, also on rows that are more than one worker takes, and the same codes each time."""
    rows = torch.cat([weight, weight.flip(0) * 1.3])
    request = requested(rows, hessian, grid)
    reference, (ours, alone) = gptq(request), round_matrices([request, request])
    losses = [objective(rows, codes.values(), request.curvature.hessian) for codes in (ours, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert torch.equal(ours.values(), alone.values())


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}-{grid.precision}")
def test_compiled_storage_is_torchs(grid: Grid) -> None:
    """Scales and offsets, from subnormal to beyond the largest, as torch's own types round them."""
    draw = torch.Generator().manual_seed(5)
    wished = torch.randn(400, 2, generator=draw) * torch.logspace(-44, 6, 400)[:, None].abs()
    shared = torch.rand(400, 2, generator=draw).half().float() if grid.super_block > 1 else torch.zeros(400, 2)
    expected = grid.storable(Affine(*wished.T), shared.T if grid.super_block > 1 else None)
    for row, (one, other) in enumerate(zip(wished.numpy(), shared.numpy(), strict=True)):
        found = storable(one[0], one[1], other[0], other[1], compiled_grid(grid))
        assert found == (float(expected.scale[row]), float(expected.offset[row])), one


def test_without_correlation_feedback_is_nearest_rounding(weight: torch.Tensor) -> None:
    """With H a multiple of the identity nothing can be made good: each level is the one nearest to its weight."""
    codes = rounded(weight, torch.eye(COLUMNS), GGUF_GRIDS["Q5_0"])
    scales = codes.scales.repeat_interleave(32, 1)
    assert ((weight - codes.values()).abs() <= scales.abs() / 2 * 1.001 + 1e-9)[codes.levels.abs() < 15].all()


DEGENERATE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dead columns": lambda hessian: hessian * (torch.arange(COLUMNS) % 3 > 0) * (torch.arange(COLUMNS) % 3 > 0)[:, None],
    "one direction": lambda hessian: torch.outer(hessian[0], hessian[0]) / hessian[0].square().mean(),
    "nothing": torch.zeros_like,
    "tiny": lambda hessian: hessian * 1e-30,
    "huge": lambda hessian: hessian * 1e12,
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}-{grid.precision}")
def test_degenerate_inputs_are_survived(kind: str, grid: Grid, weight: torch.Tensor, hessian: torch.Tensor) -> None:
    values = rounded(weight, DEGENERATE[kind](hessian), grid).values()
    assert torch.isfinite(values).all()
    assert torch.equal(values[3], torch.zeros(COLUMNS))
    assert (values - weight).abs().max() < 0.5


@pytest.mark.parametrize(
    "grid", [*GGUF_GRIDS.values(), int4_grid(32, "portable"), int4_grid(32, "packed")], ids=lambda grid: grid.name
)
def test_rows_of_one_sign_are_kept(grid: Grid, hessian: torch.Tensor) -> None:
    """A constant row, and rows far from zero: no worse than levels between zero and the largest weight can be."""
    torch.manual_seed(4)
    rows = torch.stack([torch.full((COLUMNS,), 0.02), 0.9 + 0.1 * torch.rand(COLUMNS), -0.05 - 0.1 * torch.rand(COLUMNS)])
    for uncorrelated in (torch.eye(COLUMNS), hessian):
        values = rounded(rows, uncorrelated, grid).values()
        weights = uncorrelated.diagonal()
        error = ((values - rows).square() * weights).sum(1) / (rows.square() * weights).sum(1)
        assert error.sqrt().max() < 0.12


def test_a_hessian_that_is_not_finite_is_refused(hessian: torch.Tensor) -> None:
    broken = hessian.clone()
    broken[4, 4] = float("nan")
    assert curvature_of(broken) is None


# --- layer by layer


def test_passes_rest_before_each_linear_and_go_on(tiny_model: Path) -> None:
    """Step by step the rounded passes get what the model with changed weights gives, those in fp32 what it gave before."""
    source = open_source(str(tiny_model))
    model, texts = open_model(source), calibration_texts("builtin", 24)
    passes = Passes(model, texts)
    assert [(step.layer, [name.split(".")[-2] for name in step.names]) for step in passes.steps] == [
        (layer, names) for layer in range(2) for names in (["query", "key", "value"], ["dense"], ["dense"], ["dense"])
    ]  # fmt: skip
    changed, untouched = open_model(source), open_model(source)
    with passes.running():
        passes.keep_exact(0)
        for step in passes.steps:
            passes.keep_exact(step.layer + 1)
            found = inputs_of(passes, step)
            expected = [seen_by(each, step.names[0], texts) for each in (untouched, changed)]
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values, atol=1e-4, rtol=1e-4)
            for each in (model, changed):
                for name in step.names:
                    each.transformers_model.get_parameter(name).data.mul_(0.8)
    assert (found[0] - found[1]).abs().max() > 0.1


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_sum_up_what_every_token_gives(lanes: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments, their loss and means equal a computation over all rows at once, however many workers share them."""
    monkeypatch.setattr(sys.modules["tierexport.quantize.passes"], "cores", lambda: lanes)
    source, texts = open_source(str(tiny_model)), calibration_texts("builtin", 60)
    model, changed, untouched = (open_model(source) for _ in range(3))
    passes = Passes(model, texts)
    first, later = passes.steps[0], passes.steps[2]
    with passes.running():
        passes.keep_exact(0)
        passes.advance(first)
        for each in (model, changed):
            each.transformers_model.get_parameter(first.names[0]).data.mul_(0.5)
        found = gathered(passes, later, moments=True)
        assert len(passes.each_lane(len)) == lanes
        assert min(passes.each_lane(len)) > 0
    rows, exact = (seen_by(each, later.names[0], texts).double() for each in (changed, untouched))
    centred, lost = rows - rows.mean(0), (exact - exact.mean(0)) - (rows - rows.mean(0))
    assert found is not None
    torch.testing.assert_close(found.plain.hessian.double(), rows.T @ rows / len(rows), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.mean.double(), rows.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.fp32_mean.double(), exact.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.centred.hessian.double(), centred.T @ centred / len(rows), atol=1e-4, rtol=1e-3)
    for problem, inputs, missed in ((found.plain, rows, exact - rows), (found.centred, centred, lost)):
        whole = inputs.T @ inputs / len(rows)
        damped = whole + CORRECTION_DAMPING * whole.diagonal().mean() * torch.eye(len(whole))
        expected = CORRECTION * (missed.T @ inputs / len(rows)) @ torch.linalg.inv(damped)
        torch.testing.assert_close(problem.correction.double(), expected, atol=1e-3, rtol=1e-2)
        assert expected.abs().max() > 0.01


def test_rows_that_two_matrices_share_have_their_biases_corrected_once(tiny_model: Path, tmp_path: Path) -> None:
    """Query and key of equal weights: the mean of each one's outputs is fp32's, as where they differ."""
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(tiny_model / "model.safetensors")
    query, key = (f"encoder.layer.0.attention.self.{name}" for name in ("query", "key"))
    save_file(
        weights | {f"{key}.weight": weights[f"{query}.weight"].clone()},
        tmp_path / "model" / "model.safetensors",
        {"format": "pt"},
    )
    source, texts = open_source(str(tmp_path / "model")), calibration_texts("builtin", 60)
    model, exact = open_model(source), open_model(source)
    names = [name for name, _ in model.transformers_model.named_parameters() if name.endswith("bias")]
    round_layers(model, texts, tiny_targets(source), names, Stages(tmp_path / "stages"), "key")
    for name in (query, key):
        means = [outputs_of(each, name, texts).mean(0) for each in (model, exact)]
        torch.testing.assert_close(*means, atol=1e-4, rtol=1e-3)


def inputs_of(passes: Passes, step: Step) -> list[torch.Tensor]:
    """What the passes in fp32 and the rounded ones have for a step, (real tokens, columns) each."""
    lanes = passes.each_lane(lambda pairs: [[each.advance(step) for each in pair] for pair in pairs])
    both: Any = zip(*(pair for lane in lanes for pair in lane), strict=True)
    return [torch.cat(rows) for rows in both]


def seen_by(model: Any, name: str, texts: Sequence[Text]) -> torch.Tensor:
    """What a Linear of a model gets for texts, in any order, (real tokens, columns)."""
    rows = []
    linear = model.transformers_model.get_submodule(name.removesuffix(".weight"))
    for batch in batches(model, prompted(model.prompts, texts)):
        hook = linear.register_forward_pre_hook(lambda _, inputs, mask=batch.mask: rows.append(real_rows(inputs[0], mask)))
        with torch.no_grad():
            model(dict(batch.features))
        hook.remove()
    return torch.cat(rows)


def outputs_of(model: Any, name: str, texts: Sequence[Text]) -> torch.Tensor:
    """What a Linear of a model gives for texts, (real tokens, rows)."""
    found: torch.Tensor = model.transformers_model.get_submodule(name)(seen_by(model, f"{name}.weight", texts)).detach()
    return found


def test_so_many_tokens_are_read(tiny_model: Path) -> None:
    model, texts = open_model(open_source(str(tiny_model))), calibration_texts("builtin", 200)
    few = token_ids(model, [text.text for text in within(model, texts, 3000)])
    assert 2000 < sum(map(len, few)) < 4000
    assert within(model, texts, 10**6) == texts


def test_a_bias_makes_up_for_what_the_means_lose(tiny_model: Path, tmp_path: Path) -> None:
    """The mean of a rounded Linear's outputs is fp32's, and the vectors come nearer to fp32's than without."""
    source, texts = open_source(str(tiny_model)), calibration_texts("builtin", 60)
    names = [name for name, _ in open_model(source).transformers_model.named_parameters() if name.endswith("bias")]
    means, losses = {}, {}
    for kept in (True, False):
        model = open_model(source)
        found = round_layers(model, texts, tiny_targets(source), names if kept else [], Stages(tmp_path / str(kept)), "key")
        assert len(found.fp32) == (12 if kept else 0)
        linear = "encoder.layer.1.output.dense"
        exact = open_model(source)
        outputs = [outputs_of(each, linear, texts) for each in (model, exact)]
        means[kept] = float((outputs[0].mean(0) - outputs[1].mean(0)).abs().max())
        others = [text.text for text in calibration_texts("builtin", 400)[1::3]]
        vectors = [each.encode(others, normalize_embeddings=True) for each in (model, exact)]
        losses[kept] = 1 - float((vectors[0] * vectors[1]).sum(1).mean())
    assert means[True] < 1e-4 < 0.1 * means[False]
    assert losses[True] < losses[False]


def test_rows_are_found_wherever_a_converter_puts_them() -> None:
    generator = np.random.default_rng(3)
    query, key = (generator.normal(size=(8, 32)).astype(np.float32) for _ in range(2))
    fused = np.concatenate([query, key])[generator.permutation(16)]
    found = row_placements(fused, {"query": torch.from_numpy(query), "key": torch.from_numpy(key)})
    for place, matrix in zip(found, (query, key), strict=True):
        np.testing.assert_array_equal(fused[place.rows], matrix[place.into])
    assert sum(len(place.rows) for place in found) == 16
    assert row_placements(fused + 1, {"query": torch.from_numpy(query)}) == []


def tiny_targets(source: Source) -> list[Target]:
    """Both layers of the tiny model at IQ4_NL."""
    weights = load_file(source.path / "model.safetensors")

    def target(name: str, values: torch.Tensor) -> Target:
        tensor = Tensor(name, "", int(name.split(".")[2]), tuple(values.shape))
        plain = nearest(values, torch.eye(values.shape[1]), "IQ4_NL")
        return Target(tensor, values.numpy, plain.numpy, GGUF_GRIDS["IQ4_NL"])

    matrices = {name: values for name, values in weights.items() if ".layer." in name and values.dim() == 2}
    return [target(name, values) for name, values in matrices.items()]


def test_layers_that_are_done_are_not_done_again(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run left behind that was killed after its first layer is taken, and the end is the same."""
    source, texts = open_source(str(tiny_model)), calibration_texts("builtin", 40)
    targets = tiny_targets(source)
    biases = [name for name, _ in open_model(source).transformers_model.named_parameters() if name.endswith("bias")]
    whole = round_layers(open_model(source), texts, targets, biases, Stages(tmp_path / "whole"), "key")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    Stages(tmp_path / "cut").drop("layer-1")
    seen: list[Request] = []

    def counted(requests: Sequence[Request]) -> list[Codes]:
        seen.extend(requests)
        return round_matrices(requests)

    monkeypatch.setattr(sys.modules["tierexport.quantize.layerwise"], "round_matrices", counted)
    resumed = round_layers(open_model(source), texts, targets, biases, Stages(tmp_path / "cut"), "key")
    assert len(whole.codes) == 12
    assert len(seen) == 6
    assert whole.codes.keys() == resumed.codes.keys()
    for name, codes in whole.codes.items():
        assert torch.equal(codes.values(), resumed.codes[name].values()), name
    assert len(whole.fp32) == 12
    for name, values in whole.fp32.items():
        np.testing.assert_array_equal(values, resumed.fp32[name])


def test_layers_that_wait_in_files_are_rounded_the_same(tiny_model: Path, tmp_path: Path) -> None:
    source, texts = open_source(str(tiny_model)), calibration_texts("builtin", 40)
    whole, waiting = open_model(source), open_model(source)
    biases = [name for name, _ in whole.transformers_model.named_parameters() if name.endswith("bias")]
    (tmp_path / "layers").mkdir()
    asked = texts, tiny_targets(source), biases
    expected = round_layers(whole, *asked, Stages(tmp_path / "whole"), "key")
    found = round_layers(waiting, *asked, Stages(tmp_path / "waiting"), "key", folder=tmp_path / "layers")
    assert len(expected.codes) == 12
    assert expected.codes.keys() == found.codes.keys()
    for name, codes in expected.codes.items():
        assert torch.equal(codes.values(), found.codes[name].values()), name
    assert expected.fp32.keys() == found.fp32.keys()
    for name, values in expected.fp32.items():
        np.testing.assert_array_equal(values, found.fp32[name])
    held = {".layer." in name: each.numel() for name, each in waiting.transformers_model.named_parameters()}
    assert held[True] == 0 < held[False]


# --- tuning


def test_tuning_reads_what_rounding_has_not(tiny_model: Path) -> None:
    """As many tokens of other texts; where there are none left, the same."""
    model = open_model(open_source(str(tiny_model)))
    for tokens, alike in ((2000, False), (10**6, True)):
        plan = pipeline.plan(RECIPES / "four_bit.toml", [f"model={tiny_model}", f"calibration.tokens={tokens}"])
        read, tuned_on = within(model, plan.texts.texts, tokens), unread(model, plan.texts.texts, tokens)
        assert (tuned_on == read) is alike
        assert alike or not set(tuned_on) & set(read)
        counts = [sum(map(len, token_ids(model, [text.text for text in each]))) for each in (read, tuned_on)]
        assert counts[1] == pytest.approx(counts[0], rel=0.2)


def tuned(source: Source, folder: Path) -> Rounded:
    model = open_model(source)
    texts = calibration_texts("builtin", 240)
    names = [name for name, each in model.transformers_model.named_parameters() if each.dim() == 1 and "pooler" not in name]
    rounded = round_layers(model, texts, tiny_targets(source), names, Stages(folder / "layers"), "key")
    return distill(model, open_model(source), texts, rounded, names, Stages(folder / "steps"), "key")


def test_tuning_resumes_and_ends_the_same(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run left behind that was killed after some segments is taken, and the end is that of one left alone."""
    monkeypatch.setattr(sys.modules["tierexport.quantize.distill"], "TUNING_STEPS", 60)
    source = open_source(str(tiny_model))
    whole = tuned(source, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    Stages(tmp_path / "cut" / "steps").drop("tuned-2")
    taken = (tmp_path / "cut" / "steps" / "tuned-1" / "state.safetensors").stat().st_mtime_ns
    resumed = tuned(source, tmp_path / "cut")
    assert (tmp_path / "cut" / "steps" / "tuned-1" / "state.safetensors").stat().st_mtime_ns == taken
    losses = [Stages(tmp_path / "whole" / "steps").notes(f"tuned-{segment}") for segment in range(3)]
    assert losses == [Stages(tmp_path / "cut" / "steps").notes(f"tuned-{segment}") for segment in range(3)]
    assert losses[-1] < losses[0]
    assert whole.fp32.keys() == resumed.fp32.keys()
    for name, values in whole.fp32.items():
        np.testing.assert_array_equal(values, resumed.fp32[name])
    for name, codes in whole.codes.items():
        assert torch.equal(codes.values(), resumed.codes[name].values()), name
        kind = gguf.GGMLQuantizationType[codes.grid.name]
        np.testing.assert_array_equal(gguf.quants.dequantize(pack(codes), kind), codes.values().numpy())


def test_a_tuned_build_is_nearer_at_the_same_size(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tierexport.quantize.distill"], "TUNING_STEPS", 40)
    folder = tiny_recipe.parent
    plain, ours = (build(tiny_recipe, folder / name, "--set", f"rounding={name}") for name in ("gptq", "distill"))
    for name in ("gguf", "torchao"):
        assert plain.artifact(name)["bytes"] == pytest.approx(ours.artifact(name)["bytes"], abs=64)
        assert "distill" in {each["rounding"] for each in ours.artifact(name)["tensors"]}
    assert 1 - ours.results["torchao"]["cos_mean"] < 1 - plain.results["torchao"]["cos_mean"]
    files = [next((each.folder / "gguf").glob("*.gguf")) for each in (plain, ours)]
    biases = [{each.name: each.data for each in gguf.GGUFReader(file).tensors}["blk.0.ffn_up.bias"] for file in files]
    assert 0 < np.abs(biases[0] - biases[1]).max() < 0.1
    assert "tuned (distill)" in (ours.folder / "README.md").read_text()


# --- what a build makes of it


def test_four_bits_of_minilm_are_clearly_more_faithful(minilm: Source, tmp_path: Path) -> None:
    """Every matrix at 4 bits, built-in calibration texts, judged by llama.cpp and torchao on other sentences."""
    ours = build(RECIPES / "four_bit.toml", tmp_path / "gptq")
    plain = build(RECIPES / "four_bit.toml", tmp_path / "nearest", "--set", "rounding=nearest")
    losses = {name: [1 - each.results[name]["cos_mean"] for each in (ours, plain)] for name in ("gguf", "torchao")}
    assert losses["gguf"][0] < 0.45 * losses["gguf"][1]
    assert losses["torchao"][0] < 0.5 * losses["torchao"][1]
    for name in losses:
        assert [ours.artifact(name)["bytes"] // 1000, plain.artifact(name)["bytes"] // 1000] == [
            ours.artifact(name)["bytes"] // 1000
        ] * 2
        kinds = {each["rounding"] for each in ours.artifact(name)["tensors"] if each["role"].startswith("ffn")}
        assert kinds == {"gptq"}
        assert {each["rounding"] for each in plain.artifact(name)["tensors"]} == {"nearest"}


def test_codes_reach_the_torchao_folder_as_they_are(packed: Built) -> None:
    """In the packed layout, where scales and offsets are bfloat16: each block uses storable values and many levels."""
    weights = tierexport.load(str(packed.folder / "torchao")).transformers_model.state_dict()
    name = "encoder.layer.1.intermediate.dense.weight"
    values = weights[name].reshape(-1, 32)
    steps = values.sort(1).values.diff(dim=1)
    scale = steps.where(steps > 1e-7, torch.inf).amin(1, keepdim=True)
    assert torch.equal(
        (values - values[:, :1]).div(scale).round().abs().amax(1) <= 15, torch.ones(len(values), dtype=torch.bool)
    )
    assert {each["rounding"] for each in packed.artifact("torchao")["tensors"] if each["name"] == name} == {"gptq"}


def test_a_matrix_that_gains_nothing_falls_back_and_the_artifact_says_so(tiny_recipe: Path) -> None:
    """Zeros are rounded to zeros by anybody; what llama-quantize's rounding does as well is left to it."""
    path = tiny_recipe.parent / "model" / "model.safetensors"
    weights = load_file(path)
    zeros = "encoder.layer.0.attention.output.dense.weight"
    weights[zeros] = torch.zeros_like(weights[zeros])
    save_file(weights, path, {"format": "pt"})
    built = build(tiny_recipe, tiny_recipe.parent / "out", "--set", "tiers.embeddings.bits=8")
    again = build(tiny_recipe, tiny_recipe.parent / "out", "--set", "tiers.embeddings.bits=8")  # from the stage's record
    for made in (built, again):
        rows = {each["name"]: each for each in made.artifact("gguf")["tensors"]}
        fallen = rows["blk.0.attn_output.weight"]
        assert (fallen["rounding"], fallen["note"]) == ("nearest", "error feedback gained nothing")
        assert rows["blk.0.ffn_up.weight"]["rounding"] == "gptq"
        assert rows["token_embd.weight"]["rounding"] == "nearest"
    assert not list((tiny_recipe.parent / "out").glob(".rounding*"))


def test_the_plan_says_how_each_tensor_will_be_rounded(tiny_recipe: Path) -> None:
    plan = json.loads(run("plan", tiny_recipe, "--json").stdout)
    for planned in plan["formats"]:
        found = {each["name"]: each["rounding"] for each in planned["tensors"]}
        assert set(found.values()) == {"gptq", "nearest"}
    plain = json.loads(run("plan", tiny_recipe, "--set", "rounding=nearest", "--json").stdout)
    assert {each["rounding"] for planned in plain["formats"] for each in planned["tensors"]} == {"nearest"}
