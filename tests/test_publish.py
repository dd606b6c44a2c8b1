"""publish: a verified folder on a hub is whole, says what was measured, and comes back as it went."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import RECIPES, Built, build, run
from forked import command
from loopback_card import card_errors
from loopback_repository import User
from loopback_writable import Fault, Kind, WritableHub, serving_writable
from tierexport.datasets.textfiles import BUILTIN

TOKEN = "hf_" + "a" * 20 + "SECRET"
NAME = "alice/tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Built:
    """A verified artifact of the tiny model, with retrieval figures and a gate that holds."""
    folder = tmp_path_factory.mktemp("tiny-published")
    text = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', f'"{tiny_model}"')
    (folder / "recipe.toml").write_text(text)
    options = ("--set", f'verify.data=["{BUILTIN / "retrieval"}"]', "--set", 'verify.gates=["cos_mean >= 0.5"]')
    return build(folder / "recipe.toml", folder / "out", *options)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    with serving_writable(tmp_path / "cache") as server:
        server.tokens[TOKEN] = User("alice")
        yield server


def publish(hub: WritableHub, folder: Path, *options: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whose client does not wait between tries; it never shows the token."""
    arguments = ["publish", str(folder), "--to", f"hf:{NAME}", *options]
    done = command(*arguments, environment={**os.environ, **hub.environment(), "HF_TOKEN": token})
    assert not token or token not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Signature" not in done.stderr
    return done


def held(hub: WritableHub) -> dict[str, bytes]:
    """What the repository holds, without what the hub itself keeps there."""
    return {path: blob.content for path, blob in hub.head(NAME).files.items() if path != ".gitattributes"}


def local(folder: Path) -> dict[str, bytes]:
    """What of an artifact folder is published, but for the card."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    del found["README.md"]
    return found


def figures(verification: dict[str, Any]) -> list[Any]:
    """The results without what is measured anew each time."""
    return [{key: value for key, value in each.items() if "per_second" not in key} for each in verification["results"]]


def test_published_whole_in_one_commit_and_never_twice(hub: WritableHub, tiny: Built) -> None:
    shown = publish(hub, tiny.folder, "--dry-run", "--json")
    assert shown.returncode == 0, shown.stderr
    assert NAME not in hub.repositories
    assert {each["what"] for each in json.loads(shown.stdout)["changes"]} == {"new"}

    done = publish(hub, tiny.folder)
    assert done.returncode == 0, done.stderr
    there = held(hub)
    card = there.pop("README.md").decode()
    assert there == local(tiny.folder)
    assert card_errors(card) == []
    assert f'SentenceTransformer("{NAME}")' in card
    head = hub.head(NAME)
    assert head.files["torchao/model.safetensors"].lfs
    assert sum(commit.message.startswith("tiny-bert") for commit in hub.repositories[NAME].commits.values()) == 1

    hub.log.clear()
    again = publish(hub, tiny.folder)
    assert again.returncode == 0, again.stderr
    assert "nothing was uploaded" in again.stdout
    assert hub.head(NAME).oid == head.oid
    assert all(request.method in ("GET", "HEAD") for request in hub.log)


def test_what_comes_back_verifies_with_the_same_numbers(hub: WritableHub, tiny: Built, tmp_path: Path) -> None:
    assert publish(hub, tiny.folder).returncode == 0
    code = f"import json, huggingface_hub; print(json.dumps(huggingface_hub.snapshot_download({NAME!r})))"
    back = tmp_path / "back"
    shutil.copytree(hub.python(code, HF_TOKEN=TOKEN), back)
    done = run("verify", back, "--data", BUILTIN / "retrieval", "--json")
    assert done.exit_code == 0, done.stderr
    assert figures(json.loads(done.stdout)) == figures(json.loads((tiny.folder / "verify.json").read_text()))


def test_the_next_release_takes_the_place_of_the_last(hub: WritableHub, tiny: Built, tiny_model: Path, tmp_path: Path) -> None:
    hub.create(NAME)
    hub.commit(NAME, {"gguf/old.gguf": b"old", "codec.safetensors": b"old", "notes.txt": b"mine"})
    assert publish(hub, tiny.folder).returncode == 0
    there = held(hub)
    assert not {"gguf/old.gguf", "codec.safetensors"} & set(there)
    assert there["notes.txt"] == b"mine"  # what is none of ours stays


@pytest.fixture(scope="module")
def lesser(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Built:
    """A GGUF of the same model alone, without an imatrix."""
    folder = tmp_path_factory.mktemp("lesser")
    options = ("--set", f"model={tiny_model}", "--set", 'formats=["gguf"]', "--set", "rounding=nearest")
    return build("int8", folder / "out", *options)


ENTRANCE = {"modules.json", "config_sentence_transformers.json"}


def opened(hub: WritableHub) -> list[int]:
    """What sentence-transformers makes of the repository by its name: the shape of a vector."""
    code = (
        "import json, sentence_transformers as s; "
        f"print(json.dumps(s.SentenceTransformer({NAME!r}, device='cpu').encode(['x']).shape))"
    )
    found: list[int] = hub.python(code, HF_TOKEN=TOKEN)
    return found


def test_a_release_without_torchao_leaves_nothing_that_opens_it(hub: WritableHub, tiny: Built, lesser: Built) -> None:
    assert publish(hub, tiny.folder).returncode == 0
    assert set(held(hub)) >= ENTRANCE
    assert opened(hub) == [1, 64]
    hub.commit(NAME, {"notes.txt": b"mine", "imatrix.gguf": b"GGUF", "codec.safetensors": b"old"})
    assert publish(hub, lesser.folder, "--dry-run").returncode == 0
    done = publish(hub, lesser.folder, "--json")
    assert done.returncode == 0, done.stderr
    gone = {each["path"] for each in json.loads(done.stdout)["changes"] if each["what"] == "removed"}
    assert ENTRANCE | {"torchao/modules.json", "codec.safetensors"} <= gone
    there = held(hub)
    assert set(there) == {*local(lesser.folder), "README.md", "notes.txt", "imatrix.gguf"}  # the last is none of a release's
    assert publish(hub, tiny.folder).returncode == 0
    assert opened(hub) == [1, 64]


def test_an_imatrix_that_a_release_had_goes_with_it(hub: WritableHub, lesser: Built, tmp_path: Path) -> None:
    assert publish(hub, lesser.folder).returncode == 0
    manifest = json.loads(held(hub)["manifest.json"])
    manifest["files"]["imatrix.gguf"] = "0" * 64
    hub.commit(NAME, {"imatrix.gguf": b"GGUF", "manifest.json": json.dumps(manifest).encode()})
    assert publish(hub, lesser.folder).returncode == 0
    assert "imatrix.gguf" not in held(hub)


def test_a_model_of_the_user_s_own_stays_and_opens(hub: WritableHub, tiny: Built, lesser: Built, tiny_model: Path) -> None:
    """Its modules.json opens its own folders, whatever a manifest there says; its codec belongs to its weights."""
    files = [path for path in tiny_model.rglob("*") if path.is_file() and not path.name.startswith(".")]
    own = {path.relative_to(tiny_model).as_posix(): path.read_bytes() for path in files}
    hub.create(NAME)
    hub.commit(NAME, own | {"codec.safetensors": b"its codec"})
    assert publish(hub, lesser.folder).returncode == 0
    there = held(hub)
    assert {name: there[name] for name in own} == own
    assert there["codec.safetensors"] == b"its codec"
    assert opened(hub) == [1, 64]
    before = hub.head(NAME).oid
    refused = publish(hub, tiny.folder)
    assert refused.returncode == 2
    assert "other-model: modules.json there opens a model of its own" in refused.stderr
    assert hub.head(NAME).oid == before
    assert publish(hub, tiny.folder, "--despite", "other-model").returncode == 0
    unknown = publish(hub, tiny.folder, "--despite", "other-model")
    assert unknown.returncode == 2
    assert "nothing of that name" in unknown.stderr


@pytest.mark.parametrize("modules", [b"[", b"{}", b"[1]", b'[{"path": 1}]', b'[{"path": "0_Transformer", "type": "x"}]'])
def test_a_modules_json_that_is_not_ours_is_not_touched(hub: WritableHub, lesser: Built, modules: bytes) -> None:
    hub.create(NAME)
    hub.commit(NAME, {"modules.json": modules, "config_sentence_transformers.json": b"{}", "manifest.json": b"[]"})
    assert publish(hub, lesser.folder).returncode == 0
    assert (held(hub)["modules.json"], held(hub)["config_sentence_transformers.json"]) == (modules, b"{}")


@pytest.mark.parametrize("kind", ["status", "drop"])
def test_what_is_there_can_not_be_read_so_nothing_is_changed(hub: WritableHub, tiny: Built, lesser: Built, kind: Kind) -> None:
    assert publish(hub, tiny.folder).returncode == 0
    before = hub.head(NAME).oid
    hub.faults.append(Fault("GET", "*/resolve/*", kind, times=50))
    hub.faults.append(Fault("HEAD", "*/resolve/*", kind, times=50))
    done = publish(hub, lesser.folder)
    assert done.returncode == 3, done.stdout + done.stderr
    assert NAME in done.stderr
    assert hub.head(NAME).oid == before
    hub.faults.clear()
    assert publish(hub, lesser.folder).returncode == 0
    assert not ENTRANCE & set(held(hub))


def test_a_folder_as_a_hub_always_opens_too(tiny: Built, lesser: Built, tmp_path: Path) -> None:
    options = ("--to", f"dir:{tmp_path / 'out'}")
    assert run("publish", tiny.folder, *options).exit_code == 0
    assert run("publish", lesser.folder, *options).exit_code == 0
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert there == {*local(lesser.folder), "README.md"}


def test_a_branch_of_its_own(hub: WritableHub, tiny: Built) -> None:
    hub.create(NAME)
    before = hub.head(NAME).oid
    assert publish(hub, tiny.folder, "--revision", "next").returncode == 0
    assert hub.head(NAME).oid == before
    assert "gguf/tiny-bert-int8.gguf" in hub.head(NAME, "next").files


def test_private_is_never_public(hub: WritableHub, tiny: Built) -> None:
    assert publish(hub, tiny.folder, "--private").returncode == 0
    assert hub.repositories[NAME].private
    hub.repositories[NAME].private = False
    hub.commit(NAME, {"gguf/tiny-bert-int8.gguf": None})
    done = publish(hub, tiny.folder, "--private")
    assert done.returncode == 2
    assert "is there already, and public" in done.stderr


FAULTS: list[tuple[str, str, Kind]] = [
    ("POST", "/api/repos/create", "status"),
    ("POST", "*/preupload/*", "status"),
    ("POST", "*/preupload/*", "drop"),
    ("POST", "*/objects/batch", "status"),
    ("PUT", "/storage/*", "status"),
    ("PUT", "/storage/*", "drop-request"),
    ("PUT", "/storage/*", "quota"),
    ("POST", "*/validate-yaml", "status"),
    ("POST", "*/commit/*", "status"),
    ("POST", "*/commit/*", "drop"),
    ("POST", "*/commit/*", "drop-request"),
    ("POST", "*/commit/*", "quota"),
    ("POST", "*/commit/*", "applied"),
    ("GET", "/api/models/*", "status"),
    ("GET", "*/tree/*", "drop"),
]


@pytest.mark.parametrize(("method", "path", "kind"), FAULTS)
def test_broken_on_the_way_it_is_as_before_or_complete(
    hub: WritableHub, tiny: Built, method: str, path: str, kind: Kind
) -> None:
    hub.create(NAME)
    hub.commit(NAME, {"notes.txt": b"mine"})
    before = hub.head(NAME).oid
    hub.faults.append(Fault(method, path, kind, times=20))
    done = publish(hub, tiny.folder)
    hub.faults.clear()
    if path == "/api/repos/create":
        assert done.returncode == 0  # the repository is there
        return
    assert done.returncode == 3, done.stdout + done.stderr
    assert NAME in done.stderr
    assert (hub.head(NAME).oid == before) is (kind != "applied")
    hub.log.clear()
    again = publish(hub, tiny.folder)
    assert again.returncode == 0, again.stderr
    assert {path: held(hub)[path] for path in local(tiny.folder)} == local(tiny.folder)
    if path == "*/commit/*":
        assert not [request for request in hub.log if request.method == "PUT"]  # what was uploaded is not sent twice


def test_a_connection_that_breaks_once_costs_nothing(hub: WritableHub, tiny: Built) -> None:
    hub.faults.append(Fault("PUT", "/storage/*", "drop-request", times=1))
    done = publish(hub, tiny.folder)
    assert done.returncode == 0, done.stderr


def test_somebody_else_changes_it_meanwhile(hub: WritableHub, tiny: Built) -> None:
    hub.create(NAME)
    theirs = Fault("POST", "*/commit/*", "before", hook=lambda: hub.commit(NAME, {"notes.txt": b"theirs"}))
    hub.faults.append(theirs)
    done = publish(hub, tiny.folder)
    assert done.returncode == 3
    assert "somebody changed it meanwhile" in done.stderr
    assert set(held(hub)) == {"notes.txt"}
    assert publish(hub, tiny.folder).returncode == 0
    assert held(hub)["notes.txt"] == b"theirs"


@pytest.mark.parametrize("token", ["hf_" + "b" * 20, ""])
def test_a_login_that_is_wrong_or_missing(hub: WritableHub, tiny: Built, token: str) -> None:
    hub.create(NAME)
    done = publish(hub, tiny.folder, token=token)
    assert done.returncode == 3, done.stderr
    assert "hf auth login" in done.stderr
    assert set(held(hub)) == set()


def test_somebody_else_s_repository(hub: WritableHub, tiny: Built) -> None:
    hub.tokens[TOKEN] = User("bob")
    hub.create(NAME)
    done = publish(hub, tiny.folder)
    assert done.returncode == 3
    assert "may not write there" in done.stderr
    assert set(held(hub)) == set()


# --- what speaks against it


def changed(tiny: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "changed"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_what_is_not_verified_is_refused_by_name(tiny: Built, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path)
    with (folder / "gguf/tiny-bert-int8.gguf").open("ab") as file:
        file.write(b"more")
    refused = run("publish", folder, "--to", f"dir:{tmp_path / 'out'}")
    assert refused.exit_code == 2
    assert "changed: gguf/tiny-bert-int8.gguf changed since it was verified" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_gate_can_be_overruled_by_its_name(tiny: Built, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path)
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("cos_mean >= 0.5", "cos_mean >= 1.5"))
    assert run("verify", folder).exit_code == 1
    options = ("--to", f"dir:{tmp_path / 'out'}")
    refused = run("publish", folder, *options)
    assert refused.exit_code == 2
    assert "cos_mean >= 1.5: the gate failed" in refused.stderr
    done = run("publish", folder, *options, "--despite", "cos_mean >= 1.5")
    assert done.exit_code == 0, done.stderr
    assert "**Not verified against" in (tmp_path / "out/README.md").read_text()
    unknown = run("publish", folder, *options, "--despite", "cos_mean >= 1.5", "--despite", "cos_min")
    assert unknown.exit_code == 2
    assert "nothing of that name" in unknown.stderr


def test_what_ran_nowhere_is_refused(tiny: Built, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path)

    def nowhere(document: dict[str, Any]) -> None:
        for each in document["results"]:
            each["status"] = "not run"

    edit(folder / "verify.json", nowhere)
    refused = run("publish", folder, "--to", f"dir:{tmp_path / 'out'}")
    assert "unverified gguf: it ran on no device" in refused.stderr


@pytest.mark.parametrize("place", ["hf:", "hf:alice", "hf:alice/tiny@main", "ftp:alice/tiny", "alice/tiny", "dir:", ""])
def test_no_such_place(tiny: Built, place: str) -> None:
    refused = run("publish", tiny.folder, "--to", place)
    assert refused.exit_code == 2
    assert "has to be hf:ORG/NAME, modelscope:ORG/NAME or dir:PATH" in refused.stderr


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    refused = run("publish", tmp_path, "--to", "hf:alice/tiny")
    assert refused.exit_code == 2
    assert "manifest.json" in refused.stderr


def test_into_a_folder(tiny: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for what in ("published", "nothing was uploaded"):
        done = run("publish", tiny.folder, "--to", f"dir:{out}")
        assert done.exit_code == 0, done.stderr
        assert what in done.stdout
    there = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del there["README.md"]
    assert there == local(tiny.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    refused = run("publish", tiny.folder, "--to", f"dir:{tmp_path / 'mine'}")
    assert refused.exit_code == 2
    assert "is not replaced" in refused.stderr


def test_the_manifest_names_every_file_that_was_proven(tiny: Built) -> None:
    files = json.loads((tiny.folder / "manifest.json").read_text())["files"]
    for name, digest in files.items():
        assert hashlib.sha256((tiny.folder / name).read_bytes()).hexdigest() == digest
    assert set(local(tiny.folder)) - set(files) == {"manifest.json", "report.html", "verify.json"}


def test_what_a_kill_left_beside_a_folder_is_not_published(tiny: Built, tmp_path: Path) -> None:
    left = tmp_path / ".out.building"
    shutil.copytree(tiny.folder, left)
    (gguf,) = (left / "gguf").iterdir()
    gguf.write_bytes(b"of another release")
    (left / "extra.txt").write_text("stray")
    out = tmp_path / "out"
    options = ("--to", f"dir:{out}")
    assert run("publish", tiny.folder, *options).exit_code == 0
    there = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del there["README.md"]
    assert there == local(tiny.folder)
    (out / "notes.txt").write_text("mine")
    (out / "linked").symlink_to(tmp_path)
    (out / ".git" / "refs").mkdir(parents=True)
    (out / "gguf" / "old.gguf").write_bytes(b"old")
    assert run("publish", tiny.folder, *options).exit_code == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "linked").is_symlink()
    assert (out / ".git" / "refs").is_dir()
    assert not (out / "gguf" / "old.gguf").exists()


def test_a_home_may_be_named(tiny: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("publish", tiny.folder, "--to", "dir:~/out").exit_code == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
