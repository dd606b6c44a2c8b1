"""A hub on the loopback interface that models can be published to, and the faults that it makes on demand.

It speaks the part of the hub's HTTP protocol that huggingface_hub publishes models with, through LFS and without Xet.
What it holds and what it was asked is there for tests to read. It knows nothing of what is published.
"""

import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from secrets import token_hex
from threading import RLock
from typing import Any, Literal
from urllib.parse import parse_qs

from loopback_answers import Answer, Asked, RefusedError, failure, respond
from loopback_hub import Loopback, answering
from loopback_repository import Blob, Commit, Repository, User

QUOTA = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."

Kind = Literal["status", "drop", "drop-request", "drop-response", "quota", "applied", "before"]


@dataclass
class Fault:
    """What becomes of the next `times` requests of the method whose path matches the shell pattern.

    status: they are not carried out, and answered with `status`
    quota: they are not carried out, and answered as by a hub whose storage is full
    drop: they are not carried out, and the connection closes without an answer
    drop-request: the connection closes when `after` bytes of the request's body have been read
    drop-response: they are carried out, and the connection closes when `after` bytes of the answer's body have been sent;
        of an answer that has no more than those, nothing is sent
    applied: they are carried out, and the connection closes without an answer
    before: `hook` is called, then they are carried out
    """

    method: str
    path: str
    kind: Kind
    times: int = 1
    status: int = 503
    after: int = 0
    hook: Callable[[], object] | None = None


@dataclass
class Request:
    """A request that arrived; `path` is without its query, and no `status` means that the connection was dropped."""

    method: str
    path: str
    authorized: bool
    received: int = 0
    status: int | None = None


class WritableHub(Loopback):
    """Users by their tokens, repositories by their names, faults still to come, and the requests that came.

    With `part_size`, larger LFS objects are to be uploaded in parts of that many bytes.
    """

    def __init__(self, cache: Path) -> None:
        super().__init__(_Connection, cache)
        self.tokens: dict[str, User] = {}
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.part_size: int | None = None
        self.parts: dict[tuple[str, int], bytes] = {}
        self.signature = token_hex(8)
        self.lock = RLock()

    def environment(self) -> dict[str, str]:
        """A client that has no token of its own, shows no progress, and uploads through LFS."""
        return {
            **super().environment(),
            "HF_HOME": str(self.cache / "home"),
            "HF_TOKEN": "",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def create(self, name: str, private: bool = False) -> Repository:
        """A repository as the hub makes it, with one commit that holds .gitattributes."""
        repository = self.repositories[name] = Repository(private)
        return repository

    def head(self, name: str, branch: str = "main") -> Commit:
        return self.repositories[name].head(branch)

    def commit(self, name: str, files: Mapping[str, bytes | None], message: str = "Another's", branch: str = "main") -> Commit:
        """A commit that nobody asked for over HTTP."""
        blobs = {path: content if content is None else Blob(content) for path, content in files.items()}
        with self.lock:
            return self.repositories[name].add(blobs, message, branch)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The first fault that the request meets, which then has one time fewer to go."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fnmatchcase(path, fault.path):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing on stderr about clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serving_writable(cache: Path) -> AbstractContextManager[WritableHub]:
    """A hub that takes uploads until the block ends."""
    return answering(WritableHub(cache))


class _DroppedError(Exception):
    pass


class _Connection(BaseHTTPRequestHandler):
    server: WritableHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
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
        try:
            answer = self._answer(request, parse_qs(query), fault)
            stop = fault.after if fault and fault.kind == "drop-response" else None
            request.status = answer.status if stop is None else None
            self._send(answer, stop)
        except _DroppedError:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: Request, query: Mapping[str, list[str]], fault: Fault | None) -> Answer:
        """What there is to send, once the request has been read and, unless the fault prevents it, carried out."""
        kind = fault.kind if fault else None
        body = self._body(request, fault.after if fault and kind == "drop-request" else None)
        if kind == "drop":
            raise _DroppedError
        if fault and kind == "status":
            return failure(fault.status)
        if kind == "quota":
            return RefusedError(403, QUOTA).answer
        if fault and fault.hook:
            fault.hook()
        try:
            signature = query.get("signature", [None])[0]
            recursive = query.get("recursive") == ["true"]
            pull = query.get("create_pr") == ["1"]
            asked = Asked(self.server, body, self._user(signature), signature, self.headers["Range"], recursive, pull)
            with self.server.lock:
                answer = respond(request.method, request.path, asked)
        except RefusedError as refused:
            answer = refused.answer
        if kind == "applied":
            raise _DroppedError
        return answer

    def _user(self, signature: str | None) -> User | None:
        header = self.headers["Authorization"]
        if header is None:
            return None
        if signature is not None:
            raise RefusedError(400, "Only one auth mechanism allowed")
        if header.removeprefix("Bearer ") not in self.server.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.server.tokens[header.removeprefix("Bearer ")]

    def _body(self, request: Request, stop: int | None) -> bytes:
        length = int(self.headers["Content-Length"] or 0)
        body = self.rfile.read(length if stop is None else min(length, stop))
        request.received = len(body)
        if stop is not None or len(body) < length:
            raise _DroppedError
        return body

    def _send(self, answer: Answer, stop: int | None) -> None:
        if stop is not None and len(answer.body) <= stop:
            raise _DroppedError
        self.send_response(answer.status)
        headers = {"Content-Type": answer.type, **answer.headers, "Content-Length": str(len(answer.body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:stop])
        if stop is not None:
            raise _DroppedError

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
