"""publish to ModelScope, through its own client: whole or not at all, never twice, and never with the token on show."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forked import command
from loopback_hub import answering
from loopback_modelscope import BRANCH, ModelScopeHub, serving_modelscope
from loopback_repository import User
from loopback_writable import Fault, Kind
from manifests import manifest_of
from tierexport.artifact.folder import proven_files
from tierexport.artifact.manifest import read_manifest, write_manifest
from tierexport.artifact.verdicts import Verdict, Verification
from tierexport.base.digests import file_digest
from tierexport.base.files import write_json

TOKEN = "ms-" + "a" * 20 + "SECRET"
NAME = "alice/tiny"
FILES = {
    "config_sentence_transformers.json": b"{}",
    "gguf/tiny.gguf": b"GGUF\3\0\0\0" + bytes(range(256)) * 400,
    "imatrix.gguf": b"GGUF\3\0\0\0" + bytes(500),
    "modules.json": b"[]",
    "recipe.toml": b'model = "org/tiny"\nname = "int8"\n',
    "report.html": b"<title>tiny</title>\n",
    "torchao/config.json": b'{"model_type": "bert"}\n',
    "torchao/model.safetensors": bytes(range(256)),
    "torchao/special_tokens_map.json": b"",
    "torchao/tokenizer.json": b"{" + b" " * 70_000 + b"}",
}
LARGE = {"gguf/tiny.gguf", "torchao/model.safetensors", "torchao/tokenizer.json"}
NEXT = {
    **{name: content for name, content in FILES.items() if name not in ("gguf/tiny.gguf", "torchao/special_tokens_map.json")},
    "gguf/tiny-2.gguf": b"GGUF\3\0\0\0" + bytes(range(256)) * 500,
    "torchao/model.safetensors": bytes(range(255, -1, -1)),
}


def write_artifact(
    folder: Path, files: Mapping[str, bytes], licence: str | None = "mit", formats: Sequence[str] = ("gguf", "torchao")
) -> Path:
    """A folder of these files that says of itself that it was verified."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    paths = {"gguf": next(name for name in files if name.startswith("gguf/")), "torchao": "torchao"}
    paths = {kind: paths[kind] for kind in formats}
    manifest = manifest_of(paths, licence)
    verdicts = tuple(Verdict(kind, "cpu", "ok") for kind in paths)
    write_json(folder / "verify.json", Verification("org/tiny", verdicts).as_json())
    write_manifest(folder, manifest.proven(True, proven_files(folder, manifest)))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact", FILES)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelScopeHub]:
    with serving_modelscope(tmp_path / "home") as server:
        server.tokens[TOKEN] = User("alice")
        yield server


def publish(
    hub: ModelScopeHub, folder: Path, *options: str, token: str = TOKEN, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whose client does not wait between tries; it shows no secret and no noise."""
    settings = {**os.environ, **hub.environment(), "MODELSCOPE_API_TOKEN": token, **environment}
    done = command("publish", str(folder), "--to", f"modelscope:{NAME}", *options, environment=settings)
    assert not token or token not in done.stdout + done.stderr
    assert hub.signature not in done.stderr
    if done.returncode:
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith(f"tierexport: {NAME}")
        assert "Traceback" not in done.stderr
    assert {path.name for path in hub.cache.iterdir()} <= {"settings", "models"}  # none in the client's own places
    return done


def local(folder: Path) -> dict[str, bytes]:
    """What of an artifact folder is published, but for the card."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(hub: ModelScopeHub, branch: str = BRANCH) -> dict[str, bytes]:
    """What the repository holds, without the card and what the hub itself keeps there."""
    files = hub.head(NAME, branch).files
    return {path: blob.content for path, blob in files.items() if path not in ("README.md", ".gitattributes")}


def card(hub: ModelScopeHub, branch: str = BRANCH) -> str:
    return hub.head(NAME, branch).files["README.md"].content.decode()


def releases(hub: ModelScopeHub) -> int:
    """How many commits were made by publishing."""
    return sum(commit.message == "tiny, int8" for commit in hub.repositories[NAME].commits.values())


def sent(hub: ModelScopeHub) -> list[str]:
    """What was uploaded by itself."""
    return [request.path.rpartition("/")[2] for request in hub.log if request.method == "PUT"]


def test_published_whole_in_one_commit_and_never_twice(hub: ModelScopeHub, artifact: Path) -> None:
    shown = publish(hub, artifact, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert NAME not in hub.repositories

    done = publish(hub, artifact, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"{hub.endpoint}/models/{NAME}"
    assert [line.rpartition(": ")[0] for line in done.stderr.splitlines()] == [
        f"tierexport: Looking at modelscope:{NAME}", f"tierexport: Uploading to {NAME}"
    ]  # fmt: skip
    assert held(hub) == local(artifact)
    assert f"modelscope download --model {NAME} --local_dir .\n" in card(hub)
    head = hub.head(NAME)
    assert {path for path, blob in head.files.items() if blob.lfs} == LARGE
    assert (releases(hub), hub.repositories[NAME].private, hub.licences[NAME]) == (1, False, "MIT")

    hub.log.clear()
    again = publish(hub, artifact)
    assert again.returncode == 0, again.stderr
    assert "nothing was uploaded" in again.stdout
    assert hub.head(NAME) == head
    assert {request.method for request in hub.log} == {"GET"}


def test_what_the_client_downloads_is_what_was_published(hub: ModelScopeHub, artifact: Path, tmp_path: Path) -> None:
    assert publish(hub, artifact, "--private").returncode == 0
    code = (
        f"import modelscope_hub, sys; modelscope_hub.HubApi().download_repo({NAME!r}, 'model', local_dir=sys.argv[1]); print(1)"
    )
    assert hub.python(code, str(tmp_path / "back"), MODELSCOPE_API_TOKEN=TOKEN) == 1
    back = {path: content for path, content in local(tmp_path / "back").items() if not path.startswith(".")}
    assert back.pop("README.md").decode() == card(hub)
    assert back == local(artifact)


def test_the_next_release_takes_the_place_of_the_last_in_one_commit(hub: ModelScopeHub, artifact: Path, tmp_path: Path) -> None:
    assert publish(hub, artifact).returncode == 0
    hub.commit(NAME, {"notes.txt": b"mine", "torchao/deep/old.bin": b"old"}, branch=BRANCH)
    hub.log.clear()
    folder = write_artifact(tmp_path / "next", NEXT)
    done = publish(hub, folder)
    assert done.returncode == 0, done.stderr
    assert held(hub) == local(folder) | {"notes.txt": b"mine"}  # what is none of ours stays
    assert releases(hub) == 2
    assert sorted(sent(hub)) == sorted(file_digest(folder / each) for each in ("gguf/tiny-2.gguf", "torchao/model.safetensors"))


def test_a_release_without_torchao_leaves_nothing_that_opens_it(hub: ModelScopeHub, artifact: Path, tmp_path: Path) -> None:
    entrance = json.dumps([{"path": "torchao", "type": "Transformer"}]).encode()
    (artifact / "modules.json").write_bytes(entrance)
    manifest = read_manifest(artifact)
    write_manifest(artifact, manifest.proven(True, proven_files(artifact, manifest)))
    assert publish(hub, artifact).returncode == 0
    kept = {"gguf/tiny.gguf", "recipe.toml", "report.html"}
    folder = write_artifact(tmp_path / "next", {name: FILES[name] for name in kept}, formats=("gguf",))
    hub.faults.append(Fault("GET", "/api/v1/models/*/repo", "status", times=50))
    assert publish(hub, folder, MODELSCOPE_DOWNLOAD_MAX_RETRIES="1").returncode == 3
    assert held(hub) == local(artifact)
    hub.faults.clear()
    done = publish(hub, folder)
    assert done.returncode == 0, done.stderr
    assert held(hub) == local(folder)


def test_what_somebody_else_changed_is_put_right(hub: ModelScopeHub, artifact: Path) -> None:
    assert publish(hub, artifact).returncode == 0
    hub.commit(NAME, {"gguf/tiny.gguf": b"theirs", "modules.json": None}, branch=BRANCH)
    hub.log.clear()
    assert publish(hub, artifact).returncode == 0
    assert held(hub) == local(artifact)
    assert sent(hub) == []  # the hub has it still


def test_private_is_never_public(hub: ModelScopeHub, artifact: Path) -> None:
    assert publish(hub, artifact, "--private").returncode == 0
    assert hub.repositories[NAME].private
    assert "nothing was uploaded" in publish(hub, artifact, "--private").stdout
    hub.repositories[NAME].private = False
    hub.commit(NAME, {"gguf/tiny.gguf": None}, branch=BRANCH)
    done = publish(hub, artifact, "--private")
    assert done.returncode == 2
    assert "is there already, and public" in done.stderr
    assert "gguf/tiny.gguf" not in held(hub)


def test_a_branch_is_published_to_where_there_is_one(hub: ModelScopeHub, artifact: Path) -> None:
    refused = [publish(hub, artifact, "--revision", "next")]
    assert NAME not in hub.repositories
    repository = hub.create(NAME)
    refused.append(publish(hub, artifact, "--revision", "next"))
    for done in refused:
        assert done.returncode == 2
        assert "has no branch 'next'" in done.stderr
    repository.branches["next"] = repository.branches[BRANCH]
    assert publish(hub, artifact, "--revision", "next").returncode == 0
    assert (held(hub, "next"), held(hub)) == (local(artifact), {})
    assert "--local_dir . --revision next\n" in card(hub, "next")


@pytest.mark.parametrize("licence", ["gemma", None])
def test_no_licence_is_made_up(hub: ModelScopeHub, tmp_path: Path, licence: str | None) -> None:
    assert publish(hub, write_artifact(tmp_path / "artifact", FILES, licence)).returncode == 0
    assert hub.licences[NAME] == "Other"


FAULTS: list[tuple[str, str, Kind]] = [
    ("GET", "/openapi/*", "status"),
    ("GET", "/api/v1/models/*", "drop"),
    ("POST", "/api/v1/models", "status"),
    ("POST", "/api/v1/models", "applied"),
    ("POST", "*/objects/batch", "status"),
    ("PUT", "/storage/*", "drop-request"),
    ("POST", "*/commit/*", "status"),
    ("POST", "*/commit/*", "drop-request"),
    ("POST", "*/commit/*", "applied"),
]


@pytest.mark.parametrize(("method", "path", "kind"), FAULTS)
def test_broken_on_the_way_nothing_is_published_or_all(
    hub: ModelScopeHub, artifact: Path, method: str, path: str, kind: Kind
) -> None:
    hub.faults.append(Fault(method, path, kind, times=50))
    done = publish(hub, artifact)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "publishing to ModelScope failed; run the same command again" in done.stderr
    committed = (path, kind) == ("*/commit/*", "applied")
    assert (NAME in hub.repositories and releases(hub) == 1) is committed
    hub.faults.clear()
    hub.log.clear()
    again = publish(hub, artifact)
    assert again.returncode == 0, again.stderr
    assert held(hub) == local(artifact)
    assert releases(hub) == 1
    assert len(sent(hub)) == (0 if path == "*/commit/*" else len(LARGE))  # what was uploaded is not sent twice


def test_a_broken_release_leaves_the_last_one_whole(hub: ModelScopeHub, artifact: Path, tmp_path: Path) -> None:
    assert publish(hub, artifact).returncode == 0
    head = hub.head(NAME)
    folder = write_artifact(tmp_path / "next", NEXT)
    hub.faults.append(Fault("PUT", f"/storage/{file_digest(folder / 'torchao/model.safetensors')}", "status", times=50))
    assert publish(hub, folder).returncode == 3
    assert hub.head(NAME) == head


def test_a_connection_that_breaks_once_costs_nothing(hub: ModelScopeHub, artifact: Path) -> None:
    hub.create(NAME)
    looks: list[tuple[str, str, Kind]] = [("GET", "/openapi/*", "drop"), ("GET", "*/repo/files", "status")]
    hub.faults += [Fault(*each) for each in [*looks, ("PUT", "/storage/*", "drop-request"), ("PUT", "/storage/*", "status")]]
    done = publish(hub, artifact)
    assert done.returncode == 0, done.stderr
    assert held(hub) == local(artifact)
    assert not [fault for fault in hub.faults if fault.times]


@pytest.mark.parametrize(("token", "there"), [("ms-" + "b" * 20, True), ("ms-" + "b" * 20, False), ("", True), ("", False)])
def test_a_login_that_is_wrong_or_missing(hub: ModelScopeHub, artifact: Path, token: str, there: bool) -> None:
    if there:
        hub.create(NAME)
    done = publish(hub, artifact, token=token)
    assert done.returncode == 3, done.stderr
    assert "does not take this login: modelscope login" in done.stderr
    assert (held(hub) == {}) if there else (NAME not in hub.repositories)


@pytest.mark.parametrize(("user", "there"), [(User("alice", role="read"), True), (User("bob"), False)])
def test_a_login_that_may_not_write_there(hub: ModelScopeHub, artifact: Path, user: User, there: bool) -> None:
    hub.tokens[TOKEN] = user
    if there:
        hub.create(NAME)
    done = publish(hub, artifact)
    assert done.returncode == 3, done.stderr
    assert "with a token that may write there" in done.stderr
    assert (held(hub) == {}) if there else (NAME not in hub.repositories)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome to this hotel</html>")

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_something_else_answers_or_nothing(hub: ModelScopeHub, artifact: Path) -> None:
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), _Page)) as page:
        address = f"http://127.0.0.1:{page.server_port}"
        answered = publish(hub, artifact, MODELSCOPE_ENDPOINT=address)
    for done in (answered, publish(hub, artifact, MODELSCOPE_ENDPOINT=address)):  # nobody listens there any more
        assert done.returncode == 3, done.stderr
        assert "publishing to ModelScope failed" in done.stderr
