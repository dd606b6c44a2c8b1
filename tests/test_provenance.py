"""Where a model comes from: what its card states goes on, and nothing that is published names a path of this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from conftest import RECIPES, Built, build, run
from loopback_card import card_errors
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.base.records import Licence, Source
from tierexport.datasets.textfiles import BUILTIN
from tierexport.formats.gguf.imatrix import portable_bytes, read_imatrix
from tierexport.formats.torchao.tidy import _drop_places
from tierexport.model.card_head import linked, read_head
from tierexport.model.source import open_source
from tierexport.publish.local_paths import LOCAL
from tierexport.recipe.read import read_recipe
from tierexport.recipe.sharing import share
from tierexport.report.card import render_card
from tierexport.report.head import head_fields

NAME, TOKEN = "alice/little", "hf_alice"
SOMEBODY = "/home/somebody/models"
HEAD = """---
license: other
license_name: acme-research-1.0
license_link: ./LICENSE.md
language:
- en
- no
- zh-CN
base_model: /home/somebody/models/older
datasets: /home/somebody/models/texts
---
# x
"""


def head_of(tmp_path: Path, text: str | bytes) -> Any:
    (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_head(tmp_path / "README.md")


# --- reading a head


@pytest.mark.parametrize(
    ("stated", "identifiers", "text"),
    [
        ("license: mit", ("mit",), "mit"),
        ("license:\n- apache-2.0\n- mit", ("apache-2.0", "mit"), "apache-2.0, mit"),
        ("license: [mit]", ("mit",), "mit"),
        ("license: other\nlicense_name: acme", ("other",), "other"),
        ("license: 1.10", ("1.10",), "1.10"),
        ("license: null", (), ""),
        ("license:", (), ""),
    ],
)
def test_licences_are_read_as_written(tmp_path: Path, stated: str, identifiers: tuple[str, ...], text: str) -> None:
    found = head_of(tmp_path, f"---\n{stated}\n---\n# x\n")
    assert (found.licence.identifiers, str(found.licence), found.problem) == (identifiers, text, None)


@pytest.mark.parametrize(
    ("stated", "languages"),
    [
        ("no", ("no",)),
        ("\n- en\n- no\n- da", ("en", "no", "da")),
        ("[multilingual, zh-CN, en]", ("multilingual", "zh-CN", "en")),
        ("[on, off, yes, y, n, No]", ("on", "off", "yes", "y", "n", "No")),
        ("'no'", ("no",)),
        ("~", ()),
    ],
)
def test_no_is_norwegian(tmp_path: Path, stated: str, languages: tuple[str, ...]) -> None:
    assert head_of(tmp_path, f"---\nlanguage: {stated}\n---\n# x\n").languages == languages


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff---\nlicense: mit\nlanguage: en\n---\n# x\n",
        "---\r\nlicense: mit\r\nlanguage: en\r\n---\r\n# x\r\n",
        "---\nlicense: mit\nlanguage: en\n---",
        "\n\n--- \nlicense: mit\nlanguage: en\n---  \n# x\n",
        "---\n# a comment\nlicense: mit # free\nlanguage: en\n---\n# x\n\n---\n\nlicense: other\n---\n",
    ],
    ids=["a byte order mark", "carriage returns", "no text", "spaces behind the lines", "a rule below"],
)
def test_a_head_is_found_however_it_is_saved(tmp_path: Path, text: str) -> None:
    found = head_of(tmp_path, text)
    assert (found.licence.identifiers, found.languages, found.problem) == (("mit",), ("en",), None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("---\nlicense: mit\ntags: [a, b\n---\n# x\n", "it is not YAML in line"),
        ("---\nlicense: mit\nlanguage: en\n\n# x\n", "no line of --- ends it"),
        ("---\n- license\n---\n# x\n", "not a table of keys"),
        (b"---\nlicense: mit\n# caf\xe9\n---\n", "it is not UTF-8"),
        ("---\n" + "[" * 5000 + "\n---\n", "it is not YAML"),
    ],
)
def test_a_head_that_can_not_be_read_is_said(tmp_path: Path, text: str | bytes, problem: str) -> None:
    found = head_of(tmp_path, text)
    assert problem in found.problem
    assert not found.licence.identifiers


@pytest.mark.parametrize("text", ["# x\n", "", "# x\n\n---\n\nlicense: mit\n---\n", "---\n---\n# x\n"])
def test_a_card_without_a_head_states_nothing(tmp_path: Path, text: str) -> None:
    found = head_of(tmp_path, text)
    assert (found.licence, found.languages, found.problem) == (Licence(), (), None)


@pytest.mark.parametrize(
    ("link", "base_model", "leads"),
    [
        ("https://example.org/L", None, "https://example.org/L"),
        ("LICENSE", "org/a", "https://huggingface.co/org/a/blob/main/LICENSE"),
        ("./docs/LICENSE.md", "org/a", "https://huggingface.co/org/a/blob/main/docs/LICENSE.md"),
        ("LICENSE", None, None),
        ("/home/somebody/LICENSE", "org/a", None),
        ("../LICENSE", "org/a", None),
        ("file:///home/somebody/LICENSE", "org/a", None),
    ],
)
def test_a_licence_s_link_leads_there_from_everywhere(link: str, base_model: str | None, leads: str | None) -> None:
    assert linked(Licence(("other",), "acme", link), base_model).link == leads


# --- writing one


@pytest.mark.parametrize(
    ("identifiers", "name", "stated", "stated_name"),
    [
        (("mit",), None, "mit", None),
        (("apache-2.0", "mit"), None, ["apache-2.0", "mit"], None),
        (("Apache 2.0",), None, "apache-2.0", None),
        (("MIT",), None, "mit", None),
        (("Acme Research License",), None, "other", "Acme Research License"),
        (("proprietary", "mit"), None, "other", "proprietary, mit"),
        (("other",), "acme", "other", "acme"),
    ],
)
def test_a_licence_is_stated_so_that_a_hub_takes_it(
    identifiers: tuple[str, ...], name: str | None, stated: Any, stated_name: str | None
) -> None:
    found = {key: value for key, value in head_fields(Licence(identifiers, name), []).items() if value}
    assert (found["license"], found.get("license_name")) == (stated, stated_name)
    assert card_errors(f"---\n{yaml.safe_dump(found)}---\n") == []


def test_a_licence_that_its_own_hub_took_is_left_as_it_is() -> None:
    assert head_fields(Licence(("openmdw-1.1",)), [], checked=True)["license"] == "openmdw-1.1"


def test_languages_with_a_region_are_stated_beside_their_codes() -> None:
    found = head_fields(Licence(), ["multilingual", "zh-CN", "zh_Hant", "EN", "English"])
    assert found == {"language": ["multilingual", "zh", "en"], "language_bcp47": ["zh-CN", "zh_Hant"]}


# --- from a folder to a hub


def write_source(folder: Path, tiny_model: Path, head: str = HEAD) -> Path:
    """The tiny model as somebody's programs saved it: with their folders in its files."""
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text(head)
    for name, more in (
        ("config.json", {"_name_or_path": SOMEBODY}),
        ("tokenizer_config.json", {"name_or_path": SOMEBODY, "special_tokens_map_file": f"{SOMEBODY}/special_tokens_map.json"}),
    ):
        document = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(document | more), "utf-8")
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Built]:
    """The tiny model out of a local folder whose place on a hub is named, with texts of the user's own."""
    place = tmp_path_factory.mktemp("private")
    write_source(place / "little", tiny_model)
    shutil.copytree(BUILTIN / "retrieval", place / "my-set")
    lines = (BUILTIN / "screen" / "en.txt").read_text("utf-8").splitlines()
    (place / "mine.txt").write_text("\n".join(lines[:40]), "utf-8")
    rows = (f"{number % 5}\t{one}\t{other}" for number, (one, other) in enumerate(zip(lines[:20], lines[20:40], strict=True)))
    (place / "pairs.tsv").write_text("\n".join(rows), "utf-8")
    text = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', '"little"')
    (place / "recipe.toml").write_text(
        f'base_model = "{NAME}"\n{text}\n[calibration]\ntexts = "mine.txt"\n[verify]\ndata = ["my-set"]\nsts = "pairs.tsv"\n'
    )
    yield build(place / "recipe.toml", place / "out")


def test_no_path_of_this_machine_is_in_what_is_published(named: Built, tmp_path: Path) -> None:
    done = run("publish", named.folder, "--to", f"dir:{tmp_path / 'out'}")
    assert done.exit_code == 0, done.stderr  # no objection, local-paths included
    private = (str(named.folder.parent).encode(), SOMEBODY.encode(), str(Path.home()).encode() + b"/", b"private0")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"README.md", "recipe.toml", "manifest.json", "verify.json", "report.html"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [each for each in private if each in content], path
    assert (named.manifest["model"]["spec"], named.manifest["model"]["base_model"]) == (NAME, NAME)
    assert [(each["key"], each["name"]) for each in named.manifest["texts"]] == [
        ("calibration.texts", "mine.txt"), ("verify.data", "my-set"), ("verify.sts", "pairs.tsv"),
    ]  # fmt: skip


def test_its_card_and_file_state_licence_and_languages(named: Built) -> None:
    text = (named.folder / "README.md").read_text("utf-8")
    assert card_errors(text) == []
    head: Any = ModelCard(text, ignore_metadata_errors=False).data
    link = f"https://huggingface.co/{NAME}/blob/main/LICENSE.md"
    assert (head.license, head.license_name, head.license_link) == ("other", "acme-research-1.0", link)
    assert (head.language, head.language_bcp47) == (["en", "no", "zh"], ["zh-CN"])
    assert (head.base_model, head.base_model_relation) == (NAME, "quantized")
    (path,) = (named.folder / "gguf").iterdir()
    fields = {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}
    stated = {
        key: value for key, value in fields.items() if key.startswith(("general.license", "general.lang", "general.source"))
    }
    assert stated == {
        "general.license": "other",
        "general.license.name": "acme-research-1.0",
        "general.license.link": link,
        "general.languages": ["en", "no", "zh-CN"],
        "general.source.huggingface.repository": NAME,
    }


def test_who_built_it_verifies_it_again_without_naming_anything(named: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(named.folder, tmp_path / "copy"))
    done = run("verify", folder, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.stderr
    judged = json.loads(done.stdout)["results"][0]
    assert [each["dataset"] for each in judged["retrieval"]] == ["my-set"]
    assert judged["sts"]["dataset"] == "pairs.tsv"


def test_others_are_told_to_name_the_folder(named: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(named.folder, tmp_path / "copy"))
    environment = {**os.environ, "TIEREXPORT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tierexport", "verify", str(folder), "--device", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert f"can't fetch {NAME}" in done.stderr
    assert "--model names a folder with the fp32 model's files" in done.stderr
    refused = subprocess.run(
        [*command, "--model", str(named.folder.parent / "little")], env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "--data or --sts name others in its place" in refused.stderr


def test_texts_that_have_changed_are_said(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"{n}\tone {n}\ttwo {n % 3}\n" for n in range(9)))
    options = ("--set", 'formats=["gguf"]', "--set", f"verify.sts={tmp_path / 'pairs.tsv'}", "--set", "calibration.tokens=512")
    made = build(tiny_recipe, tmp_path / "out", *options)
    (tmp_path / "pairs.tsv").write_text("".join(f"{n}\tone {n}\tthree {n % 3}\n" for n in range(9)))
    done = run("verify", made.folder)
    assert done.exit_code == 2
    assert "has changed since the artifact was built" in done.stderr


def test_a_local_model_without_a_place_on_a_hub_is_published_by_its_name(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\ntags: [a, b\n---\n")
    built = run("build", tiny_recipe, "--out", tmp_path / "out", "--set", "calibration.tokens=512", "--set", 'formats=["gguf"]')
    assert built.exit_code == 0, built.stderr
    told = (
        "the head of the source's README.md can't be read (it is not YAML in line 3), so licence and languages are not stated"
    )
    assert built.stderr.count(f"tierexport: {told}\n") == 1
    assert told in (tmp_path / "out/README.md").read_text()
    assert json.loads((tmp_path / "out/manifest.json").read_text())["model"]["note"] == told
    done = run("publish", tmp_path / "out", "--to", f"dir:{tmp_path / 'there'}")
    assert done.exit_code == 0, done.stderr
    for path in (tmp_path / "there").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
    manifest = json.loads((tmp_path / "there/manifest.json").read_text())["model"]
    assert (manifest["spec"], manifest["base_model"]) == ("model", None)
    assert 'model = "model"' in (tmp_path / "there/recipe.toml").read_text()
    assert run("verify", tmp_path / "there", "--device", "cpu").exit_code == 0  # here it is known where the model lies


def test_a_path_that_a_recipe_tells_in_words_is_not_published(tiny_recipe: Path, tmp_path: Path) -> None:
    options = ("--set", 'formats=["gguf"]', "--set", "rounding=nearest", "--set", "description=made of /home/somebody/models/x")
    made = build(tiny_recipe, tmp_path / "out", *options)
    refused = run("publish", made.folder, "--to", f"dir:{tmp_path / 'there'}")
    assert refused.exit_code == 2
    assert "names '/home/somebody/models/x', which is on this machine alone" in refused.stderr
    assert run("publish", made.folder, "--to", f"dir:{tmp_path / 'there'}", "--despite", "local-paths").exit_code == 0


def test_what_a_recipe_names_and_no_stage_needed_goes_by_its_name(minilm: Source, tmp_path: Path) -> None:
    """An f16 build reads no imatrix, so that a recipe may name one that is not there."""
    recipe = read_recipe(RECIPES / "f16.toml", [f"calibration.imatrix={tmp_path / 'nowhere.gguf'}"])
    shared = share(recipe, minilm, imatrix=False)
    assert shared.document["calibration"] == {"imatrix": "nowhere.gguf"}
    assert shared.texts == ()


@pytest.mark.parametrize("name", ["/home/me/model", "model", "a/b/c", "a--b/c", "../model"])
def test_a_place_on_a_hub_has_to_be_one(tiny_recipe: Path, name: str, tmp_path: Path) -> None:
    """As hubs name repositories: they refuse a card whose base_model is something else."""
    refused = run("plan", tiny_recipe, "--set", f"base_model={name}")
    assert refused.exit_code == 2
    assert f"base_model = {name!r} has to be ORG/NAME of a hub" in refused.stderr
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.toml").write_text(f'source = "../model"\nbase_model = "{name}"\n')
    refused = run("plan", tiny_recipe, "--set", "model=mine")
    assert refused.exit_code == 2
    assert f"mine.toml: base_model = {name!r} has to be ORG/NAME of a hub" in refused.stderr


HEADS = {
    "broken": "license: mit\ntags: [a",
    "norwegian": "license: mit\nlanguage: [en, no]",
    "numbers": "license: mit\nlicense_name: 2.0\ntags: [1, 2]\nversion: 3",
    "lists": "license: [mit, apache-2.0]\nbase_model: [a/b, 3]\ndatasets: [1, no]",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_card_does_not_decide_whether_a_model_converts(tiny_model: Path, tmp_path: Path, head: str) -> None:
    from tierexport.formats.gguf.convert import converted

    write_source(tmp_path / "little", tiny_model, f"---\n{head}\n---\n# x\n")
    source = open_source(str(tmp_path / "little"))
    found = gguf.GGUFReader(converted(replace(source, digest=f"{tmp_path.name}-{source.digest}"[-60:])))
    assert found.get_field("general.license") is None  # what the card states is added for each artifact anew


def test_a_trained_model_s_card_hands_on_the_same(tiny_model: Path, tmp_path: Path) -> None:
    from tierexport.training.models import model_card

    write_source(tmp_path / "little", tiny_model)
    text = model_card(open_source(str(tmp_path / "little"), None, NAME), "int8")
    head: Any = ModelCard(text, ignore_metadata_errors=False).data
    assert (head.license, head.license_name, head.language) == ("other", "acme-research-1.0", ["en", "no", "zh"])
    assert head.license_link == f"https://huggingface.co/{NAME}/blob/main/LICENSE.md"
    broken = write_source(tmp_path / "broken", tiny_model, "---\nlicense: [mit\n---\n")
    assert "can't be read" in model_card(open_source(str(broken)), "int8")


def test_a_figure_that_is_no_number_is_left_out_of_the_head(named: Built) -> None:
    found = read_verification(named.folder)
    verdicts = tuple(replace(each, sts=each.sts and replace(each.sts, spearman=float("nan"))) for each in found.verdicts)
    text = render_card(read_manifest(named.folder), replace(found, verdicts=verdicts), "name = 1")
    assert ".nan" not in text.split("---\n")[1]
    assert card_errors(text) == []


def test_an_imatrix_keeps_the_name_of_its_texts_and_not_their_path(tmp_path: Path) -> None:
    """llama-imatrix notes the path that -f named."""
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [f"{SOMEBODY}/wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", np.arange(1, 65, dtype=np.float32).reshape(1, 64))
    writer.add_tensor("blk.0.ffn_up.weight.counts", np.full((1, 1), 7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    before = read_imatrix(path)
    assert before.dataset == "wiki.train.raw"
    content = portable_bytes(path)
    assert SOMEBODY.encode() not in content
    (tmp_path / "portable.gguf").write_bytes(content)
    after = read_imatrix(tmp_path / "portable.gguf")
    assert (after.dataset, after.chunks) == (before.dataset, before.chunks)
    np.testing.assert_array_equal(after.means["blk.0.ffn_up.weight"], before.means["blk.0.ffn_up.weight"])
    assert portable_bytes(tmp_path / "portable.gguf") == content


def test_saved_settings_lose_the_folders_of_whoever_made_them(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    kept = {"unk_token": "/", "sep_token": "[SEP]", "added_tokens_decoder": {"1": {"content": "/a/b"}}, "model_max_length": 8}
    inner = {"text_config": {"_name_or_path": SOMEBODY, "layers": 2}}
    lost = {"vocab_file": f"{SOMEBODY}/vocab.txt", "name_or_path": "C:\\Users\\me\\model"}
    path.write_text(json.dumps(kept | lost | inner))
    _drop_places(path)
    assert json.loads(path.read_text()) == kept | {"text_config": {"layers": 2}}
    (tmp_path / "modules.json").write_text('["/a/b"]')
    _drop_places(tmp_path / "modules.json")
    assert json.loads((tmp_path / "modules.json").read_text()) == ["/a/b"]


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("made from /home/me/model today", "/home/me/model"),
        ('"~/models/mine"', "~/models/mine"),
        ("C:\\Users\\me\\model", "C:\\Users\\me\\model"),
        ("see file:///tmp/x", "file:///tmp/x"),
        ("curl http://localhost:8080/v1/embeddings", None),
        ("https://huggingface.co/org/name/blob/main/LICENSE", None),
        ("412 texts/s, fp32 and/or int8 1/2/3", None),
        ("<td>a</td></tr></table>", None),
        ("org/name, gguf/a.gguf, ./torchao/config.json", None),
    ],
)
def test_what_a_path_of_one_machine_is(text: str, local: str | None) -> None:
    found = LOCAL.search(text)
    assert (found and found[0]) == local
