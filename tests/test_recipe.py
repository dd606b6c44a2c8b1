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
from tierexport.base.registry import FORMATS
from tierexport.recipe.overrides import LONGEST_SLUG, slug_of
from tierexport.recipe.paths import PATH_KEYS, settle_existing, settle_paths
from tierexport.recipe.ranges import layer_range
from tierexport.recipe.read import parse_recipe, read_recipe
from tierexport.recipe.schema import recipe_keys

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
        ("calibration.tokens=0", "calibration.tokens = 0 has to be a number of tokens"),
        ("torchao.layout=tight", "torchao.layout = 'tight' has to be one of portable, packed, fast"),
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
    assert recipe.calibration.texts == str(RECIPES / "texts.txt")
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
    assert layer_range(text, depth) == layers


@given(st.integers(1, 200), st.lists(st.integers(1, 99), max_size=5, unique=True))
def test_shares_that_meet_cover_every_layer_once(depth: int, cuts: list[int]) -> None:
    pairs = itertools.pairwise([0, *sorted(cuts), 100])
    covered = [layer for low, high in pairs for layer in layer_range(f"{low}%-{high}%", depth)]
    assert covered == list(range(depth))


def test_paths_are_settled_and_names_are_not(tmp_path: Path) -> None:
    for name in ("texts.txt", "builtin"):
        (tmp_path / name).write_text("a text")
    (tmp_path / "set").mkdir()
    sets = ["set", "set:dev", "ORG/NAME:dev", "builtin", "nothing"]
    document = {
        "model": "all-MiniLM-L6-v2",
        "calibration": {"texts": "builtin", "imatrix": "~no.such.user/there"},
        "verify": {"data": sets, "sts": "texts.txt"},
    }
    before = copy.deepcopy(document)
    settle_existing(document, tmp_path, PATH_KEYS)
    here = str(tmp_path)
    there = [f"{here}/set", f"{here}/set:dev", "ORG/NAME:dev", "builtin", "nothing"]
    assert document == before | {"verify": {"data": there, "sts": f"{here}/texts.txt"}}
    settle_paths(before, tmp_path)
    assert before == document | {"calibration": {"texts": "builtin", "imatrix": f"{here}/~no.such.user/there"}}


def test_every_path_of_a_recipe_is_absolute_once_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --set names lies in the working directory, if it is there; all else in the recipe's folder."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.toml").write_text(THREE_TIER.read_text() + '[verify]\nsts = "pairs.tsv"\n')
    (tmp_path / "here.txt").write_text("a text")
    monkeypatch.chdir(tmp_path)
    settings = ["calibration.texts=here.txt", "calibration.imatrix=there.gguf", "vectors.codec=codec"]
    recipe = read_recipe(Path("recipe/mine.toml"), settings)
    assert recipe.calibration.texts == str(tmp_path / "here.txt")
    assert recipe.calibration.imatrix == str(tmp_path / "recipe" / "there.gguf")
    assert recipe.vectors is not None
    assert recipe.vectors.codec == str(tmp_path / "recipe" / "codec")
    assert recipe.verify.sts == recipe.document["verify"]["sts"] == str(tmp_path / "recipe" / "pairs.tsv")
    assert recipe.folder == tmp_path / "recipe"


def test_a_registered_format_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", "nowhere:Onnx")
    settings = ['formats=["onnx", "gguf", "onnx"]', "tiers.middle.onnx=q4", "tiers.ends.fallback.onnx=q8"]
    recipe = read_recipe(THREE_TIER, settings)
    assert recipe.formats == ("onnx", "gguf")
    assert recipe.tiers["middle"].types == {"onnx": "q4"}
    assert recipe.tiers["ends"].fallback == {"onnx": "q8"}
    assert "a list of gguf and torchao and onnx" in recipe_keys()["formats"].expected
    assert "tiers.NAME.fallback.onnx" in recipe_keys()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folder": "x"}, "unknown key 'folder'"),
        ({"tiers": 5}, "tiers = 5 has to be a table of tiers"),
        ({"tiers": {"ends": 5}}, "tiers.ends = 5 has to be a table"),
        (
            {"tiers": {"ends": {"bits": 4, "name": "x"}}},
            "unknown key 'tiers.ends.name'; known here: bits, gguf, torchao, fallback",
        ),
        ({"tiers": {"ends": {"bits": 4, "types": {}}}}, "unknown key 'tiers.ends.types'"),
        ({"tiers": {"ends": {"bits": 4, "gguf": 5}}}, "tiers.ends.gguf = 5 has to be a native type of the format"),
        (
            {"tiers": {"ends": {"bits": 4, "fallback": 5}}},
            "tiers.ends.fallback = 5 has to be a table of native types by format",
        ),
        ({"tiers": {"ends": {"bits": 4, "fallback": {"ggfu": "x"}}}}, "'tiers.ends.fallback.ggfu'; did you mean 'gguf'?"),
        ({"tiers": {"ends": {"bits": 4, "fallback": {"gguf": ""}}}}, "tiers.ends.fallback.gguf = '' has to be a native type"),
        ({"rules": []}, "rules = [] has to be a list of [[rules]]"),
        ({"rules": [5]}, "rules.0 = 5 has to be a table"),
        ({"rules": [{"tier": "ends", "layers": [1, True]}]}, "rules.0.layers = [1, True] has to be ranges"),
        ({"rules": [{"tear": "ends"}]}, "unknown key 'rules.0.tear'; did you mean 'tier'?"),
        ({"torchao": 5}, "torchao = 5 has to be a table"),
        ({"vectors": {"lewel": "int8"}}, "unknown key 'vectors.lewel'; did you mean 'level'?"),
        ({"vectors": {"level": "int8", "widen": 17}}, "vectors.widen = 17 has to be a number from 1 to 16"),
        ({"verify": {"gates": [{"metric": "cos_min", "comparison": ">=", "limit": 1}]}}, "verify.gates = [{"),
        ({"verify": {"gates": []}}, "verify.gates = [] has to be gates"),
        ({"verify": {"dta": "x"}}, "unknown key 'verify.dta'; did you mean 'data'?"),
        ({"description": ""}, "description = '' has to be a text"),
    ],
)
def test_a_value_of_another_kind_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(document() | changed, Path())
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["model", "verify.data"])
def test_a_user_who_is_not_there_is_no_traceback(key: str) -> None:
    done = run("build", "int8", "--set", f"{key}=~no.such.user/x")
    assert done.exit_code == 2
    assert "~no.such.user/x" in done.stderr


def test_a_key_below_a_value_is_named() -> None:
    with pytest.raises(RecipeError):
        read_recipe(RECIPES / "int8.toml", ["calibration.texts=x", "calibration=5"])


@pytest.mark.parametrize(
    ("settings", "slug"),
    [
        ([], ""),
        (["tiers.middle.bits=8"], "tiers.middle.bits-8"),
        (["model=ORG/NAME", "verify.data=builtin", "name=x"], ""),
        (['formats=["gguf"]', "rounding=nearest"], "formats-gguf-rounding-nearest"),
    ],
)
def test_settings_name_the_folder_of_a_build(settings: list[str], slug: str) -> None:
    assert slug_of(settings) == slug


def test_long_settings_are_told_apart_by_a_digest() -> None:
    slugs = {slug_of([f"calibration.texts=/a/long/path/to/a/folder/with/some/texts/in/a/file/number/{n}.txt"]) for n in (1, 2)}
    assert len(slugs) == 2
    assert all(len(each) <= LONGEST_SLUG + 9 for each in slugs)
