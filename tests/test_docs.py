"""The documents are true of the code: tables generated from it, commands that exist, links that lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from conftest import ROOT
from tierexport import cli
from tierexport.recipe.read import parse_recipe
from tierexport.report.reference import updated

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"^(?:\$ )?tierexport ([a-z].*)$", re.M)


def test_the_recipe_reference_is_the_code_s() -> None:
    page = (ROOT / "docs/recipes.md").read_text("utf-8")
    assert updated(page) == page, "make docs writes it anew"


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="has 0 places"):
        updated("nothing")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for line in NAMED.findall(page.read_text("utf-8")):
        words = shlex.split(line.partition(" #")[0])
        command: click.Command | None = cli.main.commands.get(words[0])
        if isinstance(command, click.Group):
            command = command.commands.get(words[1])
        assert command is not None, line
        known = {option for each in command.params if isinstance(each, click.Option) for option in each.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, line


@pytest.mark.parametrize("page", [*PAGES, ROOT / "third_party/README.md"], ids=lambda page: f"{page.parent.name}-{page.name}")
def test_files_of_the_code_that_are_named_are_there(page: Path) -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|toml)|pipeline\.py)`", page.read_text("utf-8")))
    assert page.name != "architecture.md" or len(named) > 40
    assert not {each for each in named if not any((root / each).exists() for root in (ROOT, ROOT / "src/tierexport"))}


def test_the_readme_s_first_screen_says_what_for_whom_why_and_what_to_try() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 120
    first = text.partition("\n## ")[0]
    order = [
        "prove what the small one is worth",
        "docs/frontier.svg",
        "\ntierexport quantize ",
        "It is for",
        "Why not llama-quantize?",
    ]
    places = [first.index(each) for each in order]
    assert places == sorted(places)
    assert len(first.splitlines()) < 25


def test_sections_that_are_linked_are_there() -> None:
    for page in PAGES:
        for target, section in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                other = (page.parent / target).resolve() if target else page
                titles = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.M)
                named = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert section in named, (page.name, target, section)


def test_the_recipe_of_the_recipe_reference_is_one() -> None:
    import tomllib

    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/recipes.md").read_text("utf-8"), re.S)
    assert parse_recipe(tomllib.loads(text), ROOT).name == "three_tier"
