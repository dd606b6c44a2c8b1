"""`inspect` on a hub: the real client, over real HTTP on the loopback interface, fetches headers and no weights."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import pytest

from hostile_files import array, gguf_file, info, key, safetensors, tensor, text, written
from tierexport.formats.inspect import inspect

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 64 << 20
"""Bytes of the weights, all zeros, that are not to be served."""


class Hub(ThreadingHTTPServer):
    """What a hub answers about ORG/NAME, whose files lie in a folder. `served` counts the bytes of files that it sent."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.ranges, self.served = folder, ranges, 0

    def inspect(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`tierexport inspect` in a process of its own, since the client reads its environment when it is imported."""
        here = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HUB_CACHE": str(self.folder.parent / "cache")}
        command = [sys.executable, "-m", "tierexport", "inspect", *arguments]
        return subprocess.run(command, env={**os.environ, **here, **environment}, capture_output=True, text=True, check=False)


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path, known = self.path.partition("?")[0], "/api/models/ORG/NAME"
        if path.startswith("/ORG/NAME/resolve/"):
            self._send_file(self.server.folder / path.partition(f"/{COMMIT}/")[2])
        elif path.startswith(f"{known}/tree/{COMMIT}"):
            self._send(200, json.dumps(self._files(path.partition(COMMIT)[2].strip("/"))).encode())
        elif path == known or path.rpartition("/revision/")[0] == known:
            sound = path.rpartition("/")[2] in ("NAME", "main", "v1", COMMIT)
            answer = {"id": "ORG/NAME", "sha": COMMIT, "siblings": []} if sound else {}
            self._send(200 if sound else 404, json.dumps(answer).encode(), {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        """The one question that has a body: what is known of some paths."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        self._send(200, json.dumps([each for each in self._files("") if each["path"] in asked]).encode())

    def _files(self, folder: str) -> list[dict[str, Any]]:
        root = self.server.folder
        found = [path for path in (root / folder).rglob("*") if path.is_file()]
        return [
            {"type": "file", "path": path.relative_to(root).as_posix(), "size": path.stat().st_size, "oid": "0"}
            for path in found
        ]

    def _send_file(self, path: Path) -> None:
        if "Range" not in self.headers or not self.server.ranges:
            self._send(200, path.read_bytes(), counted=True)
            return
        begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        with path.open("rb") as opened:
            opened.seek(begin)
            content = opened.read(end + 1 - begin)
        self._send(206, content, {"Content-Range": f"bytes {begin}-{end}/{path.stat().st_size}"}, counted=True)

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None, counted: bool = False) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        for place in range(0, len(content), 1 << 16):
            try:
                sent = self.wfile.write(content[place : place + (1 << 16)])
            except (BrokenPipeError, ConnectionResetError):
                return
            self.server.served += sent if counted else 0

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with a vocabulary and much data, a model of safetensors, a file that is none."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    for name in ("gguf", "model/1_Pooling"):
        (folder / name).mkdir(parents=True)
    keys = [key("general.architecture", 8, text("bert")), key("bert.pooling_type", 4, b"\2\0\0\0")]
    words = key("tokenizer.ggml.tokens", 9, array(8, 30_000, b"".join(text(f"word {number}") for number in range(30_000))))
    head = gguf_file([*keys, words], [info("token_embd.weight", (1024, LARGE >> 12))], 0)
    written(folder / "gguf" / "model.gguf", head, LARGE + len(head) + 32 - len(head) % 32)
    head = safetensors({"embeddings.word_embeddings.weight": tensor("F32", [LARGE >> 12, 1024], 0, LARGE)}, 0)
    written(folder / "model" / "model.safetensors", head, len(head) + LARGE)
    (folder / "model" / "modules.json").write_text('[{"path": "1_Pooling", "type": "a.b.Pooling"}]')
    (folder / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "README.md").write_text("---\n---\n")
    return folder


@contextmanager
def serving(folder: Path, ranges: bool = True) -> Iterator[Hub]:
    with Hub(folder, ranges) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


@pytest.mark.parametrize(
    "name", ["ORG/NAME", "ORG/NAME@v1", "ORG/NAME:gguf/model.gguf", f"ORG/NAME@{COMMIT}:model/model.safetensors"]
)
def test_only_headers_are_fetched(name: str, folder: Path) -> None:
    """And what is found is what is found in the folder itself."""
    with serving(folder) as hub:
        done = hub.inspect(name, "--json")
    assert done.returncode == 0, done.stderr
    repository, _, file = name.partition(":")
    here = inspect(folder / file)
    print(name, f"{hub.served:,} bytes served of {sum(each.bytes for each in here):,}")
    assert hub.served < LARGE / 10
    found = json.loads(done.stdout)["artifacts"]
    paths = [f"{repository}:{Path(each.path).relative_to(folder).as_posix()}" for each in here]
    assert found == [{**each.as_json(), "path": path} for each, path in zip(here, paths, strict=True)]
    assert [each["metadata"].get("pooling") for each in found] == ([None] if "safetensors" in name else ["cls"] * len(found))
    assert not list(folder.parent.glob("cache/**/*.gguf"))


def test_a_hub_that_sends_whole_files_only_is_told_of(folder: Path) -> None:
    with serving(folder, ranges=False) as hub:
        done = hub.inspect("ORG/NAME:gguf/model.gguf")
    assert done.returncode == 3
    assert "the hub sends whole files of ORG/NAME where a part is asked for (HTTP 200 for a range): download" in done.stderr
    assert hub.served < LARGE / 4  # what fits into the buffers between the two


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("ORG/NONE", 2, "ORG/NONE is no path here, and the hub has no such model, or it is private or gated: check the name"),
        ("ORG/NAME@v9", 2, "the hub has no ORG/NAME@v9: check the name and the revision"),
        ("ORG/NAME:none.gguf", 2, "the hub's ORG/NAME has no file 'none.gguf': name ORG/NAME alone to see what it has"),
        ("ORG/NAME:README.md", 2, r"ORG/NAME:README.md: it begins with b'---\n', not with b'GGUF'"),
        ("a--b/c", 2, "the hub has no a--b/c: check the name and the revision"),
    ],
)
def test_what_a_hub_does_not_have_is_told(name: str, code: int, message: str, folder: Path) -> None:
    with serving(folder) as hub:
        done = hub.inspect(name)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_without_a_hub_a_path_that_is_missing_is_told_too(folder: Path) -> None:
    with serving(folder) as hub:
        done = hub.inspect("ORG/NAME", HF_HUB_OFFLINE="1")
    assert done.returncode == 3
    assert "ORG/NAME is no path here, and can't be read on the hub (" in done.stderr
    assert "check the path, or the network and HF_ENDPOINT" in done.stderr


def test_a_path_here_wins(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ORG").mkdir()
    here = written(tmp_path / "ORG" / "NAME", gguf_file())
    with serving(folder) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "tierexport", "inspect", "ORG/NAME", "--json"],
            cwd=tmp_path, env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert json.loads(done.stdout)["artifacts"][0]["bytes"] == here.stat().st_size
    assert hub.served == 0
