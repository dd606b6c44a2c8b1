"""The plan: every tensor gets one tier, and says what that means before anything is computed."""

import json
from pathlib import Path

import pytest

from conftest import RECIPES, Built, run
from tierexport import pipeline
from tierexport.base.errors import PlanError, RecipeError, TierexportError

THREE_TIER = RECIPES / "three_tier.toml"


def test_three_tier_has_its_tiers_where_the_recipe_says() -> None:
    gguf, torchao = pipeline.plan(THREE_TIER).formats
    for fmt, types in ((gguf, ("IQ4_NL", "Q8_0", "F16")), (torchao, ("int4", "int8", "float16"))):
        middle, ends, embeddings = types
        claimed = [row for row in fmt.rows if row.tensor.role != "kept"]
        assert {row.type for row in claimed if row.tensor.layer in (2, 3, 4)} == {middle}
        assert {row.type for row in claimed if row.tensor.layer in (0, 1, 5)} == {ends}
        assert {row.type for row in claimed if row.tensor.role == "token_embeddings"} == {embeddings}
        assert sum(row.tensor.layer is not None for row in claimed) == 6 * 6


def test_plan_reads_no_weights(tiny_recipe: Path) -> None:
    """Values that no build would accept don't disturb a plan, because nobody looks at them."""
    weights = tiny_recipe.parent / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start:] = b"\xff" * (len(raw) - start)  # NaN throughout
    weights.write_bytes(raw)
    assert pipeline.plan(tiny_recipe).formats[0].parameters > 1_000_000
    with pytest.raises(TierexportError, match="NaN"):
        pipeline.build(tiny_recipe, tiny_recipe.parent / "out")


@pytest.mark.parametrize("fixture", ["three_tier", "f16", "packed"])
def test_planned_bytes_are_the_bytes_that_build_writes(fixture: str, request: pytest.FixtureRequest) -> None:
    """To the byte, tensor by tensor: against the files' own headers, not against the manifest."""
    built: Built = request.getfixturevalue(fixture)
    for artifact in built.manifest["artifacts"]:
        shown = json.loads(run("inspect", built.folder / artifact["path"], "--json").stdout)["artifacts"][0]
        assert {each["name"]: each["bytes"] for each in shown["tensors"]} == {
            each["name"]: each["bytes"] for each in artifact["tensors"]
        }
        assert artifact["tensor_bytes"] == sum(each["bytes"] for each in shown["tensors"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rules.1.layers=2-9"], "'2-9' goes beyond the model, whose 6 layers are 0 to 5"),
        (["rules.1.layers=20%-80%"], "is claimed by 2 rules: rules.1 middle (layers = 20%-80%); rules.2 ends"),
        (["rules.1.layers=45%-80%"], "layer 2) is claimed by no rule"),
        (["rules.3.names=no.such.*"], "no tensor is named like that"),
    ],
)
def test_rules_that_do_not_partition_the_model_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        pipeline.plan(THREE_TIER, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tiers.middle.gguf=Q4_K"], "can't take Q4_K: its blocks hold 256 values, and 384 columns are no multiple of that"),
        (["tiers.middle.gguf=Q7_0"], "'Q7_0' is no GGUF type that can be written"),
        (["tiers.middle.bits=5", 'formats=["torchao"]'], "torchao has no 5-bit type here"),
        (["tiers.middle.torchao=nf4"], "'nf4' is no torchao type"),
        (["torchao.group_size=256"], "384 columns are no multiple of torchao.group_size = 256"),
        (["tiers.embeddings.torchao=int4", "torchao.layout=packed"], "packed 4-bit rows can't be looked up"),
        (["torchao.layout=fast"], "can't take int4: torchao multiplies no 4-bit integers on a CPU"),
        (["tiers.middle.torchao=int8_dynamic"], 'torchao.layout = "portable" multiplies no integers, "fast" does'),
        (
            ["tiers.embeddings.torchao=int8_dynamic", "tiers.middle.bits=8", "torchao.layout=fast"],
            "rows are looked up, not multiplied",
        ),
    ],
)
def test_a_type_that_a_shape_cannot_take_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(PlanError) as error:
        pipeline.plan(THREE_TIER, overrides)
    assert message in str(error.value)


def test_a_fallback_is_taken_only_where_needed_and_said() -> None:
    overrides = ["tiers.middle.gguf=Q4_K", "tiers.middle.fallback.gguf=Q5_0", 'formats=["gguf"]']
    (gguf,) = pipeline.plan(THREE_TIER, overrides).formats
    middle = [row for row in gguf.rows if row.tier.name == "middle"]
    assert {(row.tensor.role, row.type, row.note) for row in middle if row.tensor.shape[-1] == 1536} == {
        ("ffn_down", "Q4_K", "")
    }
    others = {(row.type, row.note) for row in middle if row.tensor.shape[-1] == 384}
    assert others == {("Q5_0", "fallback: Q4_K does not fit")}


def test_names_match_in_the_format_or_in_the_source() -> None:
    by_role = ["rules.1.names=blk.2.*", "rules.1.layers=2", 'rules.2.layers=["0-1", "3-5"]']
    by_source = ["rules.1.names=encoder.layer.2.*", *by_role[1:]]
    for overrides in (by_role, by_source):
        (gguf,) = pipeline.plan(THREE_TIER, [*overrides, 'formats=["gguf"]']).formats
        assert {row.tensor.layer for row in gguf.rows if row.tier.name == "middle"} == {2}


def test_the_plan_counts_what_error_feedback_does_not_reach() -> None:
    """Of three_tier's types torchao's int8 has none; of a GGUF's all have it, but IQ4_XS, here in FFN down projections."""
    counts = {each.format: (each.fed_back, each.to_nearest) for each in pipeline.plan(THREE_TIER).formats}
    assert counts == {"gguf": (36, 0), "torchao": (18, 18)}
    (gguf,) = pipeline.plan(
        THREE_TIER, ["tiers.middle.gguf=IQ4_XS", 'formats=["gguf"]', "tiers.middle.fallback.gguf=Q5_0"]
    ).formats
    assert (gguf.fed_back, gguf.to_nearest) == (33, 3)
    assert gguf.as_json()["layer_tensors_to_nearest"] == 3


def test_plan_prints_a_table_and_json() -> None:
    shown = run("plan", THREE_TIER)
    assert shown.exit_code == 0
    assert "blk.2.attn_q.weight" in shown.stdout
    assert "IQ4_NL" in shown.stdout
    printed = json.loads(run("plan", THREE_TIER, "--json").stdout)
    assert [fmt["format"] for fmt in printed["formats"]] == ["gguf", "torchao"]
    assert printed["formats"][0]["tensor_bytes"] == pipeline.plan(THREE_TIER).formats[0].bytes
