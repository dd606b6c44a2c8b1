"""A third format is one package and one line of registration: everything else asks the object."""

import json
from pathlib import Path

import pytest

import tierexport
from conftest import RECIPES, ROOT, Built, build, run
from third_format import WEIGHTS
from tierexport.base.registry import FORMATS
from tierexport.report.reference import updated


@pytest.fixture(scope="module")
def registered() -> object:
    """The third format, beside the two that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "npz", "third_format:Npz")
        yield


@pytest.fixture(scope="module")
def built(registered: object, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A tiny model in the third format beside torchao's."""
    out = tmp_path_factory.mktemp("third") / "out"
    return build(RECIPES / "f16.toml", out, "--set", f"model={tiny_model}", "--set", 'formats=["torchao", "npz"]')


def test_it_is_planned(registered: object, tiny_model: Path) -> None:
    done = run("plan", RECIPES / "f16.toml", "--set", f"model={tiny_model}", "--set", 'formats=["npz"]', "--json")
    assert done.exit_code == 0, done.stderr
    (planned,) = json.loads(done.stdout)["formats"]
    assert planned["format"] == "npz"
    assert {each["type"] for each in planned["tensors"]} == {"float16", "float32"}


def test_it_is_built_and_verified_on_the_cpu(built: Built) -> None:
    assert built.artifact("npz")["bytes"] == (built.folder / "npz" / WEIGHTS).stat().st_size
    assert built.results["npz"]["status"] == "ok"
    assert built.results["npz"]["tokens_equal"] == 1
    assert built.results["npz"]["cos_min"] > 0.9999
    again = run("verify", built.folder, "--device", "cpu", "--json")
    assert again.exit_code == 0, again.stderr
    assert {each["format"] for each in json.loads(again.stdout)["results"]} == {"torchao", "npz"}


@pytest.mark.parametrize("place", [".", "npz", f"npz/{WEIGHTS}"])
def test_it_is_inspected(place: str, built: Built) -> None:
    done = run("inspect", built.folder / place, "--json")
    assert done.exit_code == 0, done.stderr
    found = {each["format"]: each for each in json.loads(done.stdout)["artifacts"]}
    assert set(found) == ({"safetensors", "npz"} if place == "." else {"npz"})
    shown = {each["name"]: (each["type"], each["bytes"]) for each in found["npz"]["tensors"]}
    assert shown == {each["name"]: (each["type"], each["bytes"]) for each in built.artifact("npz")["tensors"]}


def test_it_is_reported(built: Built, tmp_path: Path) -> None:
    card, page = ((built.folder / name).read_text() for name in ("README.md", "report.html"))
    assert '### numpy\n\n```python\nimport tierexport\n\nmodel = tierexport.load("npz"' in card
    assert card.index("### sentence-transformers") < card.index("### numpy") < card.index("### LangChain")
    assert "npz" in page
    picture = tmp_path / "compare.svg"
    assert run("compare", built.folder, "--picture", picture).exit_code == 0
    assert "#2e9e5b" in picture.read_text()


def test_it_stands_in_the_reference(registered: object) -> None:
    """What its tiers become, beside the two others."""
    page = updated((ROOT / "docs/recipes.md").read_text("utf-8"))
    assert "| bits | gguf | torchao | npz |" in page
    assert "| 6 | Q6_K where 256 divides the columns |  | float16 |" in page
    assert "In npz a recipe may name float16, float32. Error feedback serves none." in page


def test_it_is_loaded_and_published(built: Built, tmp_path: Path) -> None:
    assert tierexport.load(str(built.folder / "npz")).encode("a sentence").shape == (64,)
    done = run("publish", built.folder, "--to", f"dir:{tmp_path / 'there'}", "--json")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "there" / "npz" / WEIGHTS).is_file()


def test_nothing_but_its_package_and_the_registry_knows_a_format() -> None:
    """No code outside a format's own branches on its name; `search` finds types of GGUF alone."""
    package = Path(tierexport.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[:2] not in {("formats", name) for name in FORMATS}:
            for name in ("gguf", "torchao"):
                assert f'== "{name}"' not in path.read_text(), path
                assert f'"{name}" in' not in path.read_text(), path
