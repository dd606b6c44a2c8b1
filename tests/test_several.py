"""A repository of several sizes: one card, one file for each tag, and nothing of an earlier release that is no longer in it."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tierexport
from card_snippets import python, snippet
from conftest import RECIPES, Built, build, run
from forked import command
from loopback_card import card_errors
from loopback_repository import User
from loopback_writable import WritableHub, serving_writable
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Floats
from tierexport.report.card import Access
from tierexport.report.repository import (
    LARGEST,
    NO_NEARER,
    RECOMMENDED,
    SMALLER,
    TAKE,
    Member,
    Size,
    recommended,
    render_repository,
)

TOKEN, NAME = "hf_" + "a" * 20 + "SECRET", "alice/tiny-GGUF"
SIZES = {"TIER_A": "4", "TIER_B": "8", "TIER_C": "16"}
"""The bits of each size by its tag."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder for artifacts, with a recipe of the tiny model."""
    folder = tmp_path_factory.mktemp("sizes")
    text = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', f'"{tiny_model}"')
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def sizes(place: Path) -> list[Path]:
    """Artifacts of the tiny model in three sizes, each scored on the built-in set."""
    return [sized(place, tag, bits).folder for tag, bits in SIZES.items()]


def sized(folder: Path, tag: str, bits: str, *more: str) -> Built:
    own = ('formats=["gguf"]', "tiers.all.bits=" + bits, "verify.data=builtin", "calibration.tokens=512")
    settings = (f"name={tag}", *own, *more)
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


def member(folder: Path) -> Member:
    """The GGUF of a folder."""
    size = Size(folder, read_manifest(folder), read_verification(folder))
    artifact = size.manifest.artifacts[0]
    return Member(size, artifact, Path(artifact.path).name)


def test_the_one_to_take_is_the_smallest_that_is_shown_to_lose_little(sizes: list[Path]) -> None:
    """An interval that reaches zero does not show it: its lower end has to lie above the limit."""
    members = [member(folder) for folder in sizes]

    def judged(low: float, member: Member) -> Member:
        found = member.size.found
        (verdict, *rest) = found.verdicts
        retrieval = tuple(replace(each, ci_low=low, ci_high=0.02) for each in verdict.retrieval)
        found = replace(found, verdicts=(replace(verdict, retrieval=retrieval), *rest))
        return replace(member, size=replace(member.size, found=found))

    wide, narrow, narrower = (judged(low, member) for low, member in zip((-0.01, -0.004, -0.001), members, strict=True))
    assert recommended((wide, narrow, narrower)) is narrow
    card = render_repository((wide, narrow, narrower), Access())
    uses = [line.rpartition(" | ")[2].rstrip(" |") for line in card.splitlines() if line.startswith("| [`")]
    assert uses == [SMALLER, f"{TAKE}: {RECOMMENDED}", LARGEST]
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
    other = Path(shutil.copytree(sizes[1], tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["digest"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "is of another model than" in refused(sizes[0], other)
    assert "the tag A stands for" in refused(sizes[0], sized(place, "A", "4").folder)
    assert "ends in no tag of letters, digits and underscores" in refused(sizes[0], sized(place, "A.1", "4").folder)


def test_every_objection_to_one_of_them_stands(sizes: list[Path], tmp_path: Path) -> None:
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


# --- torchao beside the GGUFs

TEXTS = ["How do I fix a flat tire?", "Patch the inner tube."]
ENTRANCE = {"modules.json", "config_sentence_transformers.json"}
BOTH = 'formats=["gguf", "torchao"]'


@pytest.fixture(scope="module")
def mixed(place: Path) -> dict[str, Path]:
    """Folders by their tags: torchao in 4 bits, and twice the same in 8, beside GGUFs of different bits; and a GGUF alone."""
    made = {
        "T4": ("4", "tiers.all.torchao=int4", BOTH),
        "T8": ("8", "tiers.all.torchao=int8", BOTH),
        "S8": ("5", "tiers.all.torchao=int8", BOTH),
        "G16": ("16",),
    }
    return {tag: sized(place, tag, *settings, "rounding=nearest").folder for tag, settings in made.items()}


def vectors(place: Path | str) -> Floats:
    """What stock sentence-transformers makes of texts by a folder."""
    found: Floats = import_sentence_transformers().SentenceTransformer(str(place), device="cpu").encode(TEXTS)
    return found


def vectors_by_name(hub: WritableHub) -> Floats:
    """The same by the repository's name, in a process that has tierexport's code nowhere."""
    code = (
        "import json, sentence_transformers as s; "
        f"print(json.dumps(s.SentenceTransformer({NAME!r}, device='cpu').encode({TEXTS!r}).tolist()))"
    )
    return np.array(hub.python(code, HF_TOKEN=TOKEN), np.float32)


def test_one_torchao_folder_opens_by_the_repository_s_name(hub: WritableHub, mixed: dict[str, Path]) -> None:
    """And nothing but it is fetched for that."""
    published(hub, mixed["G16"], mixed["T8"])
    files = hub.head(NAME).files
    for path in (path for path in mixed["T8"].joinpath("torchao").rglob("*") if path.is_file()):
        assert files[path.relative_to(mixed["T8"]).as_posix()].content == path.read_bytes()
    for tag in ("G16", "T8"):
        assert files[f"tiny-bert-{tag}.gguf"].content == next(mixed[tag].glob("gguf/*.gguf")).read_bytes()
    np.testing.assert_array_equal(vectors_by_name(hub), vectors(mixed["T8"] / "torchao"))
    assert not [path for path in hub.cache.rglob("*.gguf") if "alice" in str(path)]
    assert "nothing was uploaded" in published(hub, mixed["G16"], mixed["T8"])


def test_equal_torchao_folders_are_stored_once(mixed: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("publish", mixed["T8"], mixed["S8"], "--to", f"dir:{out}").exit_code == 0
    assert [path.relative_to(out).as_posix() for path in out.rglob("model.safetensors")] == ["torchao/model.safetensors"]
    np.testing.assert_array_equal(vectors(out), vectors(mixed["S8"] / "torchao"))
    for tag in ("T8", "S8"):
        name = f"tiny-bert-{tag}.gguf"
        there, here = (tierexport.load(str(each)).encode(TEXTS) for each in (out / name, mixed[tag] / "gguf" / name))
        np.testing.assert_array_equal(there, here)
    rows = [line for line in (out / "README.md").read_text().splitlines() if line.startswith(("| [`tiny-bert-", "| `torchao/"))]
    assert [row.split("`")[1] for row in rows] == ["tiny-bert-S8.gguf", "tiny-bert-T8.gguf", "torchao/"]
    assert rows[-1].endswith(f"| {TAKE} for sentence-transformers |")


def test_torchao_folders_that_differ_lie_by_their_tags_and_the_one_to_take_opens(
    mixed: dict[str, Path], tmp_path: Path
) -> None:
    """As the card shows it, run from the folder; one byte per value makes 4 bits no smaller than 8."""
    out = tmp_path / "out"
    assert run("publish", mixed["T4"], mixed["T8"], "--to", f"dir:{out}").exit_code == 0
    for tag in ("T4", "T8"):
        np.testing.assert_array_equal(vectors(out / "torchao" / tag), vectors(mixed[tag] / "torchao"))
    np.testing.assert_array_equal(vectors(out), vectors(mixed["T8"] / "torchao"))
    card = (out / "README.md").read_text()
    assert card_errors(card) == []
    rows = {line.split("`")[1]: line for line in card.splitlines() if line.startswith("| `torchao/")}
    assert list(rows) == ["torchao/T8/", "torchao/T4/"]
    assert f"{TAKE} for sentence-transformers: " in rows["torchao/T8/"]
    assert rows["torchao/T4/"].endswith(f"| {NO_NEARER} |")
    verified = json.loads((mixed["T4"] / "verify.json").read_text())["results"]
    four = next(each for each in verified if each["format"] == "torchao" and each["device"] == "cpu")
    assert f"{four['top10_retention']:.3f}" in rows["torchao/T4/"]
    for heading, tag in (("sentence-transformers", "T8"), ("torchao/T4/", "T4")):
        code = snippet(card, heading, "python")
        found = python(f"{code}\nfound = model.encode({TEXTS!r})", "found", out)
        np.testing.assert_allclose(found, vectors(mixed[tag] / "torchao").reshape(-1), atol=1e-6)
    code = snippet(card, "transformers", "python")
    assert 'subfolder="torchao/T8"' in code
    np.testing.assert_allclose(python(code, "vectors", out), vectors(mixed["T8"] / "torchao")[0], atol=1e-5)


def test_torchao_that_is_no_longer_in_it_goes(hub: WritableHub, mixed: dict[str, Path]) -> None:
    def torchao() -> set[str]:
        return {path.rpartition("/")[0] for path in hub.head(NAME).files if path.endswith("/model.safetensors")}

    published(hub, mixed["T4"], mixed["T8"], mixed["G16"])
    assert torchao() == {"torchao/T4", "torchao/T8"}
    np.testing.assert_array_equal(vectors_by_name(hub), vectors(mixed["T8"] / "torchao"))
    published(hub, mixed["T4"], mixed["G16"])
    assert torchao() == {"torchao"}
    assert not [path for path in hub.head(NAME).files if "T8" in path]
    np.testing.assert_array_equal(vectors_by_name(hub), vectors(mixed["T4"] / "torchao"))
    published(hub, mixed["G16"])
    assert not torchao()
    assert not ENTRANCE & set(hub.head(NAME).files)
    hub.commit(NAME, {"modules.json": b'[{"path": "", "type": "theirs"}]'})
    environment = {**os.environ, **hub.environment(), "HF_TOKEN": TOKEN}
    refused = command("publish", str(mixed["T8"]), str(mixed["G16"]), "--to", f"hf:{NAME}", environment=environment)
    assert refused.returncode == 2
    assert "other-model: modules.json there opens a model of its own" in refused.stderr


def test_what_a_release_of_one_size_had_goes(mixed: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folders in ([mixed["T8"]], [mixed["T4"], mixed["G16"]]):
        assert run("publish", *folders, "--to", f"dir:{out}").exit_code == 0
    made = {"README.md", "frontier.png", "proof", "torchao", *ENTRANCE, "tiny-bert-T4.gguf", "tiny-bert-G16.gguf"}
    assert {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()} == made
    np.testing.assert_array_equal(vectors(out), vectors(mixed["T4"] / "torchao"))


def test_torchao_may_come_from_a_folder_of_its_own(place: Path, mixed: dict[str, Path], tmp_path: Path) -> None:
    """Whose weights are those of another."""
    out = tmp_path / "out"
    torchao = sized(place, "TORCH", "8", 'formats=["torchao"]')
    assert run("publish", torchao.folder, mixed["S8"], "--to", f"dir:{out}").exit_code == 0
    np.testing.assert_array_equal(vectors(out), vectors(torchao.folder / "torchao"))
    assert (out / "proof" / "TORCH" / "manifest.json").is_file()
    alone = tmp_path / "alone"
    assert "the tag TORCH stands for" in run("publish", torchao.folder, torchao.folder, "--to", f"dir:{alone}").stderr
