"""The loopback hub is a hub to huggingface_hub's own client: what it takes, gives back, refuses, and breaks on demand."""

import hashlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from loopback_card import card_errors
from loopback_repository import Blob, Commit, User
from loopback_writable import Fault, WritableHub, serving_writable

NAME = "alice/model"
CARD = "---\nlicense: apache-2.0\nbase_model: org/tiny\nbase_model_relation: quantized\ntags: [gguf]\n---\n# A model\n"
GGUF = b"GGUF\3\0\0\0" + bytes(range(256)) * 400
FILES = {"README.md": CARD.encode(), "config.json": b"{}\n", "tiers/small.gguf": GGUF}
OTHERS = {"config.json": b'{"by": "another"}\n'}

CLIENT = """
import json, sys, time, warnings
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
api, name, folder, waits = HfApi(), "alice/model", Path(sys.argv[1]), []
time.sleep = waits.append

def publish(**options):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    additions = [CommitOperationAdd(str(file.relative_to(folder)), file) for file in files]
    return api.create_commit(name, additions, commit_message="Publish", **options).oid

def tree(**options):
    return [[entry.path, getattr(entry, "size", None), getattr(entry, "blob_id", None), getattr(entry, "lfs", None)]
            for entry in api.list_repo_tree(name, **options)]

def chain(error):
    return [[type(error).__name__, str(error)], *(chain(error.__cause__) if error.__cause__ else [])]

def outcome(expression):
    waits.clear()
    try: return [eval(expression), None, list(waits)]
    except Exception as error: return [None, chain(error), list(waits)]

print(json.dumps([outcome(expression) for expression in sys.argv[2:]], default=str))
"""
"""Evaluates expressions, and prints for each its value, the errors that came instead, and how long the client meant to wait."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is published."""
    for path, content in FILES.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[WritableHub]:
    with serving_writable(tmp_path / "cache") as server:
        server.tokens["hf_alice"] = User("alice", organizations=("acme",))
        server.tokens["hf_reader"] = User("alice", role="read")
        server.tokens["hf_bob"] = User("bob")
        yield server


def client(hub: WritableHub, folder: Path, *expressions: str, token: str = "hf_alice") -> Any:
    """What the last expression returns, or the chain of errors, each with its type and message."""
    value, errors, _ = outcomes(hub, folder, *expressions, token=token)[-1]
    return value if errors is None else errors


def outcomes(hub: WritableHub, folder: Path, *expressions: str, token: str = "hf_alice") -> Any:
    """Every expression's value, errors and waits, in one process of the client."""
    return hub.python(CLIENT, str(folder), *expressions, HF_TOKEN=token)


def contents(commit: Commit) -> Mapping[str, bytes]:
    return {path: blob.content for path, blob in commit.files.items() if path != ".gitattributes"}


def asked(hub: WritableHub, pattern: str) -> list[int | None]:
    """The statuses that requests got which match "METHOD PATH"."""
    return [request.status for request in hub.log if fnmatchcase(f"{request.method} {request.path}", pattern)]


def test_takes_a_model_and_gives_it_back(hub: WritableHub, folder: Path) -> None:
    oid = client(hub, folder, "api.create_repo(name, private=True) and publish()")
    head = hub.head(NAME)
    assert (head.oid, head.message) == (oid, "Publish")
    assert contents(head) == FILES
    assert head.files["tiers/small.gguf"].lfs
    assert b"tiers/small.gguf filter=lfs" in head.files[".gitattributes"].content
    assert hub.repositories[NAME].private
    info = client(hub, folder, "[(info := api.model_info(name)).sha, info.private, [s.rfilename for s in info.siblings]]")
    assert info == [oid, True, [".gitattributes", *FILES]]
    assert client(
        hub, folder, "[Path(hf_hub_download(name, path)).read_bytes().hex() for path in api.list_repo_files(name)]"
    ) == [blob.content.hex() for blob in head.files.values()]


def test_lists_a_tree_as_git_names_it(hub: WritableHub, folder: Path) -> None:
    hub.create(NAME).add({"empty": Blob(b""), "tiers/small.gguf": Blob(GGUF, lfs=True)}, "Two files")
    deep, shallow, inner = (
        value for value, _, _ in outcomes(hub, folder, "tree(recursive=True)", "tree()", "tree(path_in_repo='tiers')")
    )
    assert [entry[0] for entry in deep] == [".gitattributes", "empty", "tiers", "tiers/small.gguf"]
    assert deep[1][1:] == [0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", None]  # as git names an empty file
    assert deep[3][3] == {"size": len(GGUF), "sha256": hashlib.sha256(GGUF).hexdigest(), "pointer_size": 131}
    assert [entry[0] for entry in shallow] == [".gitattributes", "empty", "tiers"]
    assert [entry[0] for entry in inner] == ["tiers/small.gguf"]


def test_takes_the_same_model_only_once(hub: WritableHub, folder: Path) -> None:
    hub.create(NAME)
    first, second = outcomes(hub, folder, "publish()", "publish()")
    assert first[0] == second[0] == hub.head(NAME).oid
    assert len(hub.repositories[NAME].commits) == 2
    assert asked(hub, "PUT *") == [200]
    assert asked(hub, "POST */commit/*") == [200]
    assert [request.received for request in hub.log if request.method == "PUT"] == [len(GGUF)]


def test_keeps_xet_out_and_the_token_to_itself(hub: WritableHub, folder: Path) -> None:
    hub.create(NAME)
    client(hub, folder, "publish()")
    assert not asked(hub, "*xet*")
    open_to_all = {request.path for request in hub.log if not request.authorized} - {"/api/agent-harnesses"}
    assert open_to_all == {f"/storage/{NAME}/{hashlib.sha256(GGUF).hexdigest()}"}


def test_takes_large_objects_in_parts(hub: WritableHub, folder: Path) -> None:
    hub.create(NAME)
    hub.part_size = 40_000
    client(hub, folder, "publish()")
    assert contents(hub.head(NAME)) == FILES
    assert asked(hub, "PUT /storage/*") == [200] * 3


def test_keeps_branches_apart(hub: WritableHub, folder: Path) -> None:
    before = hub.create(NAME).head()
    client(hub, folder, "api.create_branch(name, branch='draft/1') or publish(revision='draft/1')")
    assert hub.head(NAME) == before
    assert contents(hub.head(NAME, "draft/1")) == FILES
    deletions = "[CommitOperationDelete('tiers/'), CommitOperationDelete('config.json')]"
    client(hub, folder, f"api.create_commit(name, {deletions}, commit_message='Less', revision='draft/1')")
    assert list(contents(hub.head(NAME, "draft/1"))) == ["README.md"]


def test_refuses_a_stale_parent(hub: WritableHub, folder: Path) -> None:
    stale = hub.create(NAME).head()
    head = hub.commit(NAME, OTHERS)
    errors = client(hub, folder, f"publish(parent_commit='{stale.oid}')")
    assert errors[0][0] == "HfHubHTTPError"
    assert "412" in errors[0][1]
    assert "A commit has happened since" in errors[0][1]
    assert hub.head(NAME) == head
    client(hub, folder, f"publish(parent_commit='{head.oid}')")
    assert hub.head(NAME).parent == head.oid


@pytest.mark.parametrize(
    ("token", "questions"),
    [
        (
            "hf_alice",
            {
                "api.create_repo('taken')": (409, "You already created this model repo"),
                "api.create_repo('taken', exist_ok=True)": (409, None),
                "api.create_repo('acme/new')": (200, None),
                "api.create_repo('bob/new')": (403, 'create a model under the namespace "bob"'),
                "api.model_info('bob/new')": (404, "Repository Not Found"),
                "api.model_info('alice/taken', revision='v2')": (404, "Invalid rev id: v2"),
                "hf_hub_download('alice/taken', 'none')": (404, "Entry Not Found"),
                "api.create_branch('alice/taken', branch='main')": (409, "already exists"),
                "api.list_repo_refs('alice/taken')": (501, "The loopback hub does not know GET"),
            },
        ),
        (
            "hf_reader",
            {
                "api.create_repo('new')": (403, "You don't have the rights"),
                "api.create_branch('alice/taken', branch='new')": (403, "Authorization error"),
                "api.model_info('alice/taken').id": (200, None),
            },
        ),
        (
            "hf_bob",
            {
                "api.create_branch('alice/taken', branch='new')": (404, "Repository Not Found"),
                "api.model_info('alice/taken')": (404, "Repository Not Found"),
                "api.create_branch('alice/public', branch='new')": (403, "Authorization error"),
            },
        ),
        (
            "hf_wrong",
            {
                "api.whoami()": (401, "Invalid user token"),
                "api.create_repo('new')": (401, "Invalid credentials in Authorization header"),
            },
        ),
        (
            "",
            {
                "api.create_repo('new')": (401, "Invalid username or password"),
                "api.model_info('alice/taken')": (401, "Repository Not Found"),
                "api.model_info('alice/public').id": (200, None),
            },
        ),
    ],
)
def test_tells_who_may_do_what(
    hub: WritableHub, folder: Path, token: str, questions: Mapping[str, tuple[int, str | None]]
) -> None:
    hub.create("alice/taken", private=True)
    hub.create("alice/public")
    found = outcomes(hub, folder, *questions, token=token)
    for (_, errors, _), (_, words) in zip(found, questions.values(), strict=True):
        assert (errors is None) if words is None else (words in errors[0][1])
    statuses = [request.status for request in hub.log if request.path != "/api/agent-harnesses"]
    assert statuses == [status for status, _ in questions.values()]


def test_knows_who_asks(hub: WritableHub, folder: Path) -> None:
    me = client(hub, folder, "api.whoami()")
    assert (me["name"], me["orgs"][0]["name"], me["auth"]["accessToken"]["role"]) == ("alice", "acme", "write")


@pytest.mark.parametrize(
    ("metadata", "errors"),
    [
        ("license: apache-2.0\npipeline_tag: sentence-similarity\nlanguage: [en, de]\nlibrary_name: gguf", []),
        ("base_model:\n- org/a\n- b", []),
        ("license: Apache", ['"license" must be one of [afl-3.0, ']),
        ("base_model: org/a/b", ['"base_model" with value "org/a/b" is not valid. Use a model id from https://hf.co/models.']),
        ("base_model: [org/a, 1]", ['"base_model[1]" with value "1" is not valid. ']),
        ("base_model_relation: export", ['"base_model_relation" must be one of [adapter, finetune, merge, quantized]']),
        ("pipeline_tag: embedding", ['"pipeline_tag" must be one of [any-to-any, ']),
        ("tags: gguf", ['"tags" must be an array']),
        ("tags: [gguf, 4]\nlibrary_name: []", ['"library_name" must be a string', '"tags[1]" must be a string']),
        ("- license", ['"metadata" must be an object']),
        ("license: [", ["YAML metadata is not valid: "]),
        ("model-index: {}", ['"model-index" must be an array']),
        ("model-index: [{results: []}]", ['"model-index[0].name" is required']),
        (
            "model-index: [{name: a, results: [{task: {}, dataset: {type: b, name: 1}, metrics: [{type: c}]}]}]",
            [
                '"model-index[0].results[0].task.type" is required',
                '"model-index[0].results[0].dataset.name" must be a string',
                '"model-index[0].results[0].metrics[0].value" is required',
            ],
        ),
    ],
)
def test_reads_a_cards_metadata(metadata: str, errors: list[str]) -> None:
    found = card_errors(f"---\n{metadata}\n---\n# A model\n")
    assert found is not None
    assert len(found) == len(errors)
    assert all(line.startswith(words) for line, words in zip(found, errors, strict=True))


def test_refuses_a_card_before_anything_is_uploaded(hub: WritableHub, folder: Path) -> None:
    before = hub.create(NAME).head()
    (folder / "README.md").write_text(CARD.replace("quantized", "smaller"))
    assert client(hub, folder, "publish()")[0] == [
        "ValueError",
        'Invalid metadata in README.md.\n- "base_model_relation" must be one of [adapter, finetune, merge, quantized]',
    ]
    assert len(hub.log) == len(asked(hub, "* /api/agent-harnesses")) + len(asked(hub, "POST /api/validate-yaml"))
    assert hub.head(NAME) == before
    (folder / "README.md").write_text("# A model\n")
    missing = "Warnings while validating metadata in README.md:\n- empty or missing yaml metadata in repo card"
    assert client(hub, folder, "warnings.simplefilter('error') or publish()")[0] == ["UserWarning", missing]


COMMITS, UPLOADS, BATCHES = ("POST", "*/commit/*"), ("PUT", "/storage/*"), ("POST", "*/objects/batch")


@pytest.mark.parametrize(
    ("fault", "statuses", "received"),
    [
        (Fault(*UPLOADS, "status"), [503, 200], [len(GGUF), len(GGUF)]),
        (Fault(*UPLOADS, "drop", times=2), [None, None, 200], [len(GGUF)] * 3),
        (Fault(*UPLOADS, "drop-request", after=5000), [None, 200], [5000, len(GGUF)]),
        (Fault(*UPLOADS, "drop-response"), [None, 200], [len(GGUF), len(GGUF)]),
        (Fault(*UPLOADS, "applied"), [None, 200], [len(GGUF), len(GGUF)]),
        (Fault(*BATCHES, "drop-response", after=9), [None, 200], None),
    ],
)
def test_faults_that_the_client_gets_over(
    hub: WritableHub, folder: Path, fault: Fault, statuses: list[int | None], received: list[int] | None
) -> None:
    hub.create(NAME)
    hub.faults.append(fault)
    [[_, errors, waits]] = outcomes(hub, folder, "publish()")
    assert errors is None
    assert waits == [1, 2][: len(statuses) - 1]
    assert asked(hub, f"{fault.method} {fault.path}") == statuses
    assert received in (None, [request.received for request in hub.log if request.method == "PUT"])
    assert contents(hub.head(NAME)) == FILES
    assert fault.times == 0


@pytest.mark.parametrize(
    ("fault", "errors", "words"),
    [
        (Fault(*COMMITS, "status", status=500), ["HfHubHTTPError", "HTTPStatusError"], "500 Internal Server Error"),
        (Fault(*COMMITS, "drop"), ["RemoteProtocolError"], "disconnected without sending a response"),
        (Fault(*COMMITS, "drop-request", after=99), ["RemoteProtocolError"], "disconnected without sending a response"),
        (Fault(*COMMITS, "quota"), ["HfHubHTTPError", "HTTPStatusError"], "403 Forbidden: Private repository storage limit"),
        (Fault(*BATCHES, "quota"), ["HfHubHTTPError", "HTTPStatusError"], "403 Forbidden: Private repository storage limit"),
        (Fault(*BATCHES, "status", times=6), ["HfHubHTTPError", "HTTPStatusError"], "503 Service Unavailable"),
        (Fault(*UPLOADS, "status", times=6), ["RuntimeError", "HfHubHTTPError"], "Error while uploading 'tiers/small.gguf'"),
        (Fault(*UPLOADS, "drop", times=6), ["RuntimeError", "RemoteProtocolError"], "Error while uploading 'tiers/small.gguf'"),
        (Fault("POST", "*/validate-yaml", "status"), ["JSONDecodeError"], "Expecting value"),
    ],
)
def test_faults_that_stop_the_client(hub: WritableHub, folder: Path, fault: Fault, errors: list[str], words: str) -> None:
    before = hub.create(NAME).head()
    hub.faults.append(fault)
    found = client(hub, folder, "publish()")
    assert [error[0] for error in found][: len(errors)] == errors
    assert words in found[0][1]
    assert hub.head(NAME) == before
    assert fault.times == 0


@pytest.mark.parametrize("fault", [Fault(*COMMITS, "applied"), Fault(*COMMITS, "drop-response", after=9)])
def test_a_commit_may_stand_that_the_client_knows_nothing_of(hub: WritableHub, folder: Path, fault: Fault) -> None:
    hub.create(NAME)
    hub.faults.append(fault)
    assert client(hub, folder, "publish()")[0][0] == "RemoteProtocolError"
    assert contents(hub.head(NAME)) == FILES
    assert client(hub, folder, "publish()") == hub.head(NAME).oid
    assert len(hub.repositories[NAME].commits) == 2


def test_another_may_commit_just_before(hub: WritableHub, folder: Path) -> None:
    parent = hub.create(NAME).head()
    hub.faults.append(Fault(*COMMITS, "before", hook=lambda: hub.commit(NAME, OTHERS)))
    errors = client(hub, folder, f"publish(parent_commit='{parent.oid}')")
    assert "A commit has happened since" in errors[0][1]
    assert contents(hub.head(NAME)) == OTHERS


def test_downloads_go_on_where_they_were_cut(hub: WritableHub, folder: Path) -> None:
    hub.create(NAME).add({"small.gguf": Blob(GGUF, lfs=True)}, "A file")
    hub.faults.append(Fault("GET", "*/resolve/*", "drop-response", after=70_000))
    pieces = "setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1000)"
    assert client(hub, folder, pieces, "Path(hf_hub_download(name, 'small.gguf')).read_bytes().hex()") == GGUF.hex()
    assert asked(hub, "GET */resolve/*") == [None, 206]
