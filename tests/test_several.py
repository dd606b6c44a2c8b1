"""A repository of several sizes: one card, one file for each tag, and nothing of an earlier release that is no longer in it."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import RECIPES, Built, build, run
from forked import command
from loopback_card import card_errors
from loopback_repository import User
from loopback_writable import WritableHub, serving_writable
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.report.card import Access
from tierexport.report.repository import LARGEST, RECOMMENDED, SMALLER, Member, recommended, render_repository

TOKEN, NAME = "hf_" + "a" * 20 + "SECRET", "alice/tiny-GGUF"
SIZES = {"TIER_A": "4", "TIER_B": "8", "TIER_C": "16"}
"""The bits of each size by its tag."""


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Path]:
    """Artifacts of the tiny model in three sizes, each scored on the built-in set."""
    folder = tmp_path_factory.mktemp("sizes")
    text = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', f'"{tiny_model}"')
    (folder / "recipe.toml").write_text(text)
    return [sized(folder, tag, bits).folder for tag, bits in SIZES.items()]


def sized(folder: Path, tag: str, bits: str) -> Built:
    settings = (f"name={tag}", 'formats=["gguf"]', "tiers.all.bits=" + bits, "verify.data=builtin", "calibration.tokens=512")
    return build(folder / "recipe.toml", folder / tag, *(part for each in settings for part in ("--set", each)))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    with serving_writable(tmp_path / "cache") as server:
        server.tokens[TOKEN] = User("alice")
        yield server


def published(hub: WritableHub, *arguments: object) -> str:
    environment = {**os.environ, **hub.environment(), "HF_TOKEN": TOKEN}
    done = command("publish", *map(str, arguments), "--to", f"hf:{NAME}", environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found_by(tag: str, paths: Iterator[str] | list[str]) -> list[str]:
    """The files that llama.cpp's -hf takes for a tag's: find_best_model in common/download.cpp."""
    models = [path for path in paths if path.endswith(".gguf") and "imatrix" not in path.rpartition("/")[2]]
    return [path for path in models if re.search(f"{tag}[.-]", path, re.IGNORECASE)]


def test_each_tag_finds_exactly_one_file_in_one_commit(hub: WritableHub, sizes: list[Path]) -> None:
    published(hub, *sizes)
    files = hub.head(NAME).files
    for folder, tag in zip(sizes, SIZES, strict=True):
        (name,) = found_by(tag, list(files))
        assert name == f"tiny-bert-{tag}.gguf"
        assert files[name].content == next(folder.glob("gguf/*.gguf")).read_bytes()
        for record in ("manifest.json", "verify.json", "recipe.toml", "report.html", "imatrix.gguf"):
            held = files.get(f"proof/{tag}/{record}")
            assert (held and held.content) == (read(folder / record)), record
    assert files["frontier.png"].content.startswith(b"\x89PNG")
    assert sum(commit.message.startswith("tiny-bert: TIER_A") for commit in hub.repositories[NAME].commits.values()) == 1
    assert "nothing was uploaded" in published(hub, *sizes)


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def test_the_card_has_a_row_for_each_file_with_its_figures(hub: WritableHub, sizes: list[Path]) -> None:
    published(hub, *sizes)
    card = hub.head(NAME).files["README.md"].content.decode()
    assert card_errors(card) == []
    rows = [line for line in card.splitlines() if line.startswith("| [`tiny-bert-")]
    assert [row.split("`")[1] for row in rows] == [f"tiny-bert-{tag}.gguf" for tag in SIZES]  # smallest first
    for folder, row in zip(sizes, rows, strict=True):
        found = next(each for each in json.loads((folder / "verify.json").read_text())["results"] if each["device"] == "cpu")
        (judged,) = found["retrieval"]
        assert f"{judged['delta']:+.3f} ({judged['ci_low']:+.3f} to {judged['ci_high']:+.3f})".replace("-", "−") in row
        assert f"{found['top10_retention']:.3f}" in row
    assert sum("**Take this one**" in row for row in rows) == 1
    lead = card.partition("## Which file")[0]
    assert re.search(
        r"\*\*[\d.]+ [KM]B → [\d.]+ [KM]B \([\d.]+ × smaller\), cosine [\d.]+, NDCG@10 .* on the built-in set\*\*", lead
    )
    chosen = next(tag for tag, row in zip(SIZES, rows, strict=True) if "**Take this one**" in row)
    assert f"llama-server -hf {NAME}:{chosen} --embedding" in card
    assert f"ollama pull hf.co/{NAME}:{chosen}" in card
    assert f'Llama("tiny-bert-{chosen}.gguf"' in card


def test_the_one_to_take_is_the_smallest_that_is_shown_to_lose_little(sizes: list[Path]) -> None:
    """An interval that reaches zero does not show it: its lower end has to lie above the limit."""
    members = [Member(folder, read_manifest(folder), read_verification(folder)) for folder in sizes]

    def judged(low: float, member: Member) -> Member:
        (verdict, *rest) = member.found.verdicts
        retrieval = tuple(replace(each, ci_low=low, ci_high=0.02) for each in verdict.retrieval)
        return replace(member, found=replace(member.found, verdicts=(replace(verdict, retrieval=retrieval), *rest)))

    wide, narrow, narrower = (judged(low, member) for low, member in zip((-0.01, -0.004, -0.001), members, strict=True))
    assert recommended((wide, narrow, narrower)) is narrow
    card = render_repository((wide, narrow, narrower), Access())
    uses = [line.rpartition(" | ")[2].rstrip(" |") for line in card.splitlines() if line.startswith("| [`")]
    assert uses == [SMALLER, RECOMMENDED, LARGEST]
    unproven = [judged(-0.01, member) for member in members]
    assert recommended(unproven) is min(unproven, key=lambda each: each.loss)


def test_what_an_earlier_release_had_goes(hub: WritableHub, sizes: list[Path]) -> None:
    published(hub, *sizes)
    hub.commit(NAME, {"notes.txt": b"mine", "other-MODEL.gguf": b"mine"})
    published(hub, *sizes[1:])
    files = set(hub.head(NAME).files)
    assert not found_by("TIER_A", list(files))
    assert not {path for path in files if path.startswith("proof/TIER_A/")}
    assert {"notes.txt", "other-MODEL.gguf", "tiny-bert-TIER_B.gguf"} <= files
    published(hub, sizes[0])
    files = set(hub.head(NAME).files)
    assert found_by("TIER_A", list(files)) == ["gguf/tiny-bert-TIER_A.gguf"]
    assert not {path for path in files if path.startswith("proof/")} | (files & {"frontier.png", "tiny-bert-TIER_B.gguf"})
    assert {"notes.txt", "other-MODEL.gguf"} <= files


def test_folders_that_do_not_belong_together_are_refused(sizes: list[Path], tmp_path: Path) -> None:
    def refused(*folders: Path) -> str:
        done = run("publish", *folders, "--to", f"dir:{tmp_path / 'out'}")
        assert done.exit_code == 2
        assert not (tmp_path / "out").exists()
        return done.stderr

    place = sizes[0].parent
    torchao = build(place / "recipe.toml", place / "torchao", "--set", 'formats=["torchao"]', "--set", "rounding=nearest")
    assert "has to hold a GGUF alone" in refused(sizes[0], torchao.folder)
    assert "the tag A stands for" in refused(sizes[0], sized(place, "A", "4").folder)
    assert "ends in no tag of letters, digits and underscores" in refused(sizes[0], sized(place, "A.1", "4").folder)


def test_every_objection_to_one_of_them_stands(sizes: list[Path], tmp_path: Path) -> None:
    import shutil

    changed = Path(shutil.copytree(sizes[1], tmp_path / "changed"))
    with next(changed.glob("gguf/*.gguf")).open("ab") as file:
        file.write(b"more")
    done = run("publish", sizes[0], changed, "--to", f"dir:{tmp_path / 'out'}")
    assert done.exit_code == 2
    assert f"changed: {changed}: gguf/tiny-bert-TIER_B.gguf changed since it was verified" in done.stderr


def test_a_folder_of_several_sizes(sizes: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for what in ("published", "nothing was uploaded"):
        done = run("publish", *sizes, "--to", f"dir:{out}")
        assert done.exit_code == 0, done.stderr
        assert what in done.stdout
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert str(sizes[0].parent).encode() not in path.read_bytes(), path
