"""A ModelScope hub on the loopback interface that models can be published to, and the faults that it makes on demand.

It speaks the part of ModelScope's HTTP protocol that modelscope_hub looks at models, publishes and downloads them with. What
it holds and what it was asked is there for tests to read. It knows nothing of what is published.
"""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

from loopback_hub import answering
from loopback_repository import Blob, Commit, Repository, User
from loopback_writable import Request, WritableHub

BRANCH = "master"
PRIVATE, PUBLIC = 1, 5
TAKEN, NO_TREE = 10010101001, 10010205001
COOKIE = "m_session_id"


class ModelScopeHub(WritableHub):
    """Users by their tokens, repositories by their names, faults still to come, and the requests that came.

    `stored` are large files by their SHA-256, whichever repositories hold them; `licences` what repositories were made with.
    """

    def __init__(self, cache: Path) -> None:
        super().__init__(cache)
        self.RequestHandlerClass = _Connection
        self.stored: dict[str, bytes] = {}
        self.licences: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        """A client that has no token of its own, and writes nowhere else than below `cache`."""
        return {
            "HOME": str(self.cache),
            "MODELSCOPE_API_TOKEN": "",
            "MODELSCOPE_CACHE": str(self.cache / "models"),
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_HOME": str(self.cache / "settings"),
        }

    def create(self, name: str, private: bool = False) -> Repository:
        """A repository as ModelScope makes it: with a card that says that there is none."""
        repository = super().create(name, private)
        repository.branches = {BRANCH: repository.branches["main"]}
        repository.add({"README.md": Blob(b"---\nlicense: Apache License 2.0\n---\n")}, "init", BRANCH)
        return repository

    def head(self, name: str, branch: str = BRANCH) -> Commit:
        return super().head(name, branch)


def serving_modelscope(cache: Path) -> AbstractContextManager[ModelScopeHub]:
    """A hub that takes uploads until the block ends."""
    return answering(ModelScopeHub(cache))


@dataclass(frozen=True)
class Asked:
    """A request beside its method and path; `user` is None where nobody is logged in."""

    hub: ModelScopeHub
    user: User | None
    query: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def readable(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not (self.user and self.user.owns(name))):
            raise RefusedError(404, f"Model {name} does not exist")
        return repository

    def writable(self, name: str) -> Repository:
        repository = self.readable(name)
        if self.user is None:
            raise RefusedError(401, "user not logged in")
        if not self.user.owns(name) or self.user.role != "write":
            raise RefusedError(403, f"no permission to write {name}")
        return repository


class RefusedError(Exception):
    """A request that is not carried out; `code` is ModelScope's own, where it is not the status."""

    def __init__(self, status: int, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code or status


# --- what is asked


def _public(asked: Asked, name: str) -> dict[str, Any]:
    """The new interface knows no private repositories."""
    if asked.readable(name).private:
        raise RefusedError(404, f"Model {name} does not exist")
    return {"id": name, "private": False}


def _known(asked: Asked, name: str) -> dict[str, Any]:
    owner, _, short = name.partition("/")
    return {"Path": owner, "Name": short, "Visibility": PRIVATE if asked.readable(name).private else PUBLIC}


def _create(asked: Asked) -> dict[str, Any]:
    wanted = asked.json
    name = f"{wanted['Path']}/{wanted['Name']}"
    if asked.user is None:
        raise RefusedError(401, "user not logged in")
    if not asked.user.owns(name) or asked.user.role != "write":
        raise RefusedError(403, f"no permission to create {name}")
    if name in asked.hub.repositories:
        raise RefusedError(400, "该名称已被注册使用，请重新命名", TAKEN)
    asked.hub.create(name, wanted["Visibility"] == PRIVATE)
    asked.hub.licences[name] = wanted["License"]
    return _known(asked, name)


def _files(asked: Asked, name: str) -> dict[str, Any]:
    files = _tree(asked.readable(name), asked.query["Revision"]).files
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    rows: dict[str, dict[str, Any]] = {path: {"Type": "tree", "Size": 0, "Sha256": "", "IsLFS": False} for path in folders}
    for path, blob in files.items():
        rows[path] = {"Type": "blob", "Size": len(blob.content), "Sha256": blob.sha256, "IsLFS": blob.lfs}
    whole = asked.query["Recursive"] == "True"
    shown = [path for path in sorted(rows) if whole or "/" not in path]
    return {"Files": [{"Path": path, "Name": path.rpartition("/")[2], **rows[path]} for path in shown]}


def _download(asked: Asked, name: str) -> bytes:
    files = _tree(asked.readable(name), asked.query["Revision"]).files
    if asked.query["FilePath"] not in files:
        raise RefusedError(404, f"{asked.query['FilePath']} does not exist")
    return files[asked.query["FilePath"]].content


def _batch(asked: Asked, name: str) -> dict[str, Any]:
    """As with LFS, those that are there already are named without an address."""
    asked.writable(name)
    found = []
    for each in asked.json["objects"]:
        href = f"{asked.hub.endpoint}/storage/{each['oid']}?Signature={asked.hub.signature}"
        found.append(each | ({} if each["oid"] in asked.hub.stored else {"actions": {"upload": {"href": href}}}))
    return {"objects": found}


def _store(asked: Asked, digest: str) -> dict[str, Any]:
    if asked.query.get("Signature") != asked.hub.signature:
        raise RefusedError(403, "the signature does not match")
    if hashlib.sha256(asked.body).hexdigest() != digest:
        raise RefusedError(400, "the content does not match its digest")
    asked.hub.stored[digest] = asked.body
    return {}


def _commit(asked: Asked, name: str, branch: str) -> dict[str, Any]:
    """All of the actions or none of them."""
    repository = asked.writable(name)
    head = _tree(repository, branch)
    changes = {each["path"]: _change(asked.hub, head, each) for each in asked.json["actions"]}
    return {"oid": repository.add(changes, asked.json["commit_message"], branch).oid}


def _change(hub: ModelScopeHub, head: Commit, action: Mapping[str, Any]) -> Blob | None:
    """What a path comes to hold; nothing where it is deleted."""
    path, kind = action["path"], (action["action"], action["type"], action["encoding"])
    if kind == ("delete", "normal", "") and path in head.files:
        return None
    if kind == ("create", "lfs", "") and len(hub.stored.get(action["sha256"], b"")) == action["size"]:
        return Blob(hub.stored[action["sha256"]], lfs=True)
    if kind == ("create", "normal", "base64") and action["sha256"] == "":
        content = base64.b64decode(action["content"], validate=True)
        if len(content) == action["size"]:
            return Blob(content)
    raise RefusedError(400, f"invalid commit action {kind} on {path}")


def _tree(repository: Repository, branch: str) -> Commit:
    if branch not in repository.branches:
        raise RefusedError(404, f"no branch {branch}", NO_TREE)
    return repository.head(branch)


MODEL = "([^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, Callable[..., dict[str, Any] | bytes]], ...] = (
    ("GET", f"/openapi/v1/models/{MODEL}", _public),
    ("GET", f"/api/v1/models/{MODEL}", _known),
    ("POST", "/api/v1/models", _create),
    ("GET", f"/api/v1/models/{MODEL}/repo/files", _files),
    ("GET", f"/api/v1/models/{MODEL}/repo", _download),
    ("POST", f"/api/v1/repos/models/{MODEL}/info/lfs/objects/batch", _batch),
    ("PUT", "/storage/([0-9a-f]{64})", _store),
    ("POST", f"/api/v1/repos/models/{MODEL}/commit/(.+)", _commit),
)
"""Methods, paths, and what they ask for, whose arguments are the groups of the path."""


def _respond(method: str, path: str, asked: Asked) -> dict[str, Any] | bytes:
    for known, pattern, ask in ROUTES:
        if known == method and (found := re.fullmatch(pattern, path)):
            return ask(asked, *found.groups())
    raise RefusedError(404, f"there is no {method} {path}")


# --- how it is asked


class _Connection(BaseHTTPRequestHandler):
    server: ModelScopeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        request = Request(self.command, path, "Authorization" in self.headers)
        self.server.log.append(request)
        fault = self.server.next_fault(self.command, path)
        kind = fault.kind if fault else None
        length = int(self.headers["Content-Length"] or 0)
        body = self.rfile.read(fault.after if fault and kind == "drop-request" else length)
        request.received = len(body)
        if kind == "drop" or len(body) < length:
            return self._drop()
        try:
            if fault and kind == "status":
                raise RefusedError(fault.status, "out of order")
            with self.server.lock:
                content = _respond(self.command, path, Asked(self.server, self._user(), dict(parse_qsl(query)), body))
        except RefusedError as refused:
            request.status = refused.status
            content = {"Code": refused.code, "Message": str(refused), "Success": False, "RequestId": "1"}
        else:
            request.status = 200
            if not isinstance(content, bytes):
                content = {"Code": 200, "Data": content, "Message": "success", "Success": True, "RequestId": "1"}
        return self._drop() if kind == "applied" else self._send(request, content)

    def _user(self) -> User | None:
        """Who asks, by the header or the cookie; refusals repeat the token, as a hub may that is badly made."""
        cookie = SimpleCookie(self.headers["Cookie"])
        header = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        token = header or (cookie[COOKIE].value if COOKIE in cookie else "")
        if token and token not in self.server.tokens:
            raise RefusedError(401, f"the token {token} is not valid")
        return self.server.tokens.get(token)

    def _send(self, request: Request, content: dict[str, Any] | bytes) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(request.status or 200)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
