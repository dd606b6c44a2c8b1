"""A hub on the loopback interface, and the real huggingface_hub client pointed at it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The one commit of every repository."""

Server = TypeVar("Server", bound=ThreadingHTTPServer)


class Loopback(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1, and the real client in processes that know no other hub."""

    def __init__(self, answers: type[BaseHTTPRequestHandler], cache: Path) -> None:
        super().__init__(("127.0.0.1", 0), answers)
        self.cache = cache

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """What the client reads when it is imported."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_CACHE": str(self.cache)}

    def python(self, code: str, *arguments: str, **environment: str) -> Any:
        """What `code` prints, as JSON has it, from a process of its own."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **self.environment(), **environment},
            capture_output=True,
            check=True,
        )
        return json.loads(done.stdout)

    def ask(self, imports: str, call: str, argument: str, **environment: str) -> Any:
        """What `call` on `name` returns, as JSON has it, or the error's type and message.

        It runs in a process of its own, since the client reads its environment when it is imported.
        """
        code = (
            "import json, sys\nfrom dataclasses import asdict\nfrom pathlib import Path\n"
            f"from tierexport.base.errors import TierexportError\n{imports}\nname = sys.argv[1]\n"
            f"try: print(json.dumps(asdict({call}), default=str))\n"
            "except TierexportError as error: print(json.dumps([type(error).__name__, str(error)]))"
        )
        return self.python(code, argument, **environment)


class Hub(Loopback):
    """The three answers of a hub that huggingface_hub's snapshot_download asks for.

    `repositories` maps "models/ORG/NAME" and "datasets/ORG/NAME" to the folders they serve.
    """

    def __init__(self, repositories: Mapping[str, Path], cache: Path) -> None:
        super().__init__(_Answer, cache)
        self.repositories = repositories
        self.asked: list[str] = []


@contextmanager
def answering(server: Server) -> Iterator[Server]:
    """`server`, which answers until the block ends."""
    with server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def serving(repositories: Mapping[str, Path], cache: Path) -> AbstractContextManager[Hub]:
    """A hub that answers until the block ends."""
    return answering(Hub(repositories, cache))


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        for name, folder in self.server.repositories.items():
            files = f"/{name.removeprefix('models/')}/resolve/{COMMIT}/"
            if path == f"/api/{name}" or path.startswith(f"/api/{name}/revision/"):
                self._send_revision(path.partition("/revision/")[2] or "main", name, body)
            elif path == f"/api/{name}/tree/{COMMIT}":
                self._send(200, json.dumps(_tree(folder)).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(files):
                content = (folder / path.removeprefix(files)).read_bytes()
                self._send(200, content, {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": COMMIT}, body)
            else:
                continue
            return
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _send_revision(self, revision: str, name: str, body: bool) -> None:
        if revision in ("main", "v1", COMMIT):
            self._send(200, json.dumps({"id": name.partition("/")[2], "sha": COMMIT, "siblings": []}).encode(), {}, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def _tree(folder: Path) -> list[dict[str, Any]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [
        {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": file.name} for file in files
    ]
