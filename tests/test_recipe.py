"""Recipes are read strictly: every mistake is named by its key, value, rule and remedy."""

import copy
import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import RECIPES, run
from tierexport.base.errors import RecipeError
from tierexport.recipe.schema import PATH_KEYS, layer_range, parse_recipe, read_recipe, settle_paths

THREE_TIER = RECIPES / "three_tier.toml"


def document() -> dict[str, Any]:
    return tomllib.loads(THREE_TIER.read_text())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_named_as_its_file(path: Path) -> None:
    assert read_recipe(path).name == path.stem


def test_a_shipped_recipe_is_found_by_name() -> None:
    assert read_recipe(Path("three_tier")) == read_recipe(THREE_TIER)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tier.middle.bits=4", "unknown key 'tier'; did you mean 'tiers'?"),
        ("tiers.middle.bit=4", "unknown key 'tiers.middle.bit'; did you mean 'bits'?"),
        ("tiers.middle.bits=7", "tiers.middle.bits = 7 has to be one of 2, 3, 4"),
        ("tiers.middle.bits=true", "tiers.middle.bits = True has to be one of"),
        ("tiers.extra.bits=4", "tiers.extra is used by no rule"),
        ("rules.0.tier=embedings", "rules.0.tier = 'embedings' is not among the tiers; did you mean 'embeddings'?"),
        ("rules.0.roles=attenton", "rules.0.roles: 'attenton' is no role; did you mean 'attention'?"),
        ("rules.9.tier=ends", "--set rules.9: the list has entries 0 to 3"),
        ("rules.1.layers=middle", "rules.1.layers: 'middle' has to be a layer"),
        ("rules.1.layers=5-2", "rules.1.layers: '5-2' has to be a layer"),
        ("rules.1.layers=80%-30%", "rules.1.layers: '80%-30%' has to be a layer"),
        ("rules.1.layers=[]", "rules.1.layers = [] has to be ranges"),
        ("formats=onnx", "formats = 'onnx' has to be a list of gguf and torchao"),
        ("rounding=best", "rounding = 'best' has to be gptq, distill, nearest"),
        ("calibration.count=0", "calibration.count = 0 has to be a number of texts"),
        ("torchao.layout=tight", "torchao.layout = 'tight' has to be portable or packed"),
        ("torchao.group_size=48", "torchao.group_size = 48 has to be one of 32"),
        ("name", "--set 'name' is not KEY=VALUE"),
        ("name.first=a", "there is nothing below 'name'"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(THREE_TIER, [override])
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["name", "model", "tiers", "rules"])
def test_a_missing_key_is_named(key: str) -> None:
    broken = document()
    del broken[key]
    with pytest.raises(RecipeError, match=f"{key} is missing"):
        parse_recipe(broken, Path())


def test_a_rule_that_claims_nothing_is_refused() -> None:
    broken = document()
    broken["rules"][0] = {"tier": "embeddings"}
    with pytest.raises(RecipeError, match="rules.0 claims nothing"):
        parse_recipe(broken, Path())


def test_overrides_reach_any_key_and_take_toml_or_plain_text() -> None:
    recipe = read_recipe(
        THREE_TIER, ["tiers.middle.bits=5", "rules.1.layers=2-3", "calibration.texts=texts.txt", "torchao.layout=packed"]
    )
    assert recipe.tiers["middle"].bits == 5
    assert recipe.rules[1].layers == ("2-3",)
    assert recipe.calibration.texts == "texts.txt"
    assert recipe.torchao.layout == "packed"


def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(RecipeError, match="is not TOML.*line 1"):
        read_recipe(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="shipped with tierexport: .*three_tier"):
        read_recipe(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "depth", "layers"),
    [("7-19", 24, range(7, 20)), ("3", 6, range(3, 4)), ("30%-80%", 6, range(2, 5)), ("30%-80%", 24, range(7, 19))],
)
def test_layer_ranges(text: str, depth: int, layers: range) -> None:
    assert layer_range(text, depth, "rules.0") == layers


@given(st.integers(1, 200), st.lists(st.integers(1, 99), max_size=5, unique=True))
def test_shares_that_meet_cover_every_layer_once(depth: int, cuts: list[int]) -> None:
    pairs = itertools.pairwise([0, *sorted(cuts), 100])
    covered = [layer for low, high in pairs for layer in layer_range(f"{low}%-{high}%", depth, "")]
    assert covered == list(range(depth))


def test_paths_are_settled_and_names_are_not(tmp_path: Path) -> None:
    for name in ("texts.txt", "builtin"):
        (tmp_path / name).write_text("a text")
    (tmp_path / "set").mkdir()
    document = {
        "model": "all-MiniLM-L6-v2",
        "calibration": {"texts": "builtin", "imatrix": "~no.such.user/there"},
        "verify": {"data": ["set", "set:dev", "ORG/NAME:dev", "builtin"], "sts": "texts.txt"},
    }
    before = copy.deepcopy(document)
    settle_paths(document, PATH_KEYS, tmp_path)
    here = str(tmp_path)
    assert document == before | {
        "verify": {"data": [f"{here}/set", f"{here}/set:dev", "ORG/NAME:dev", "builtin"], "sts": f"{here}/texts.txt"}
    }


@pytest.mark.parametrize("key", ["model", "verify.data"])
def test_a_user_who_is_not_there_is_no_traceback(key: str) -> None:
    done = run("build", "int8", "--set", f"{key}=~no.such.user/x")
    assert done.exit_code == 2
    assert "~no.such.user/x" in done.stderr


def test_a_key_below_a_value_is_named() -> None:
    with pytest.raises(RecipeError):
        read_recipe(RECIPES / "int8.toml", ["calibration.texts=x", "calibration=5"])
