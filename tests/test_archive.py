"""The pinned archive: found by its digest in the package index that is set up, fetched once, with pip or without."""

import hashlib
import html
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tierexport.base import archive, package_index
from tierexport.base.errors import MachineError
from tierexport.base.paths import cache_dir

LOGIN = "Basic bWU6c2VjcmV0"
"""`me:secret`, as HTTP sends it."""


def packed() -> bytes:
    """A source archive with a converter of one file in it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in ("conversion/__init__.py", "ggml/ggml.c"):
            member = tarfile.TarInfo(f"thing-1.0/vendor/llama.cpp/{name}")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    return file.getvalue()


CONTENT = packed()
PIN = archive.Pin("llama_cpp.python", "1.0", hashlib.sha256(CONTENT).hexdigest(), "MIT", "vendor/llama.cpp")


@dataclass
class Index:
    """What a package index on the loopback answers, and what it was asked."""

    content: bytes = CONTENT
    sha256: str = PIN.sha256
    as_html: bool = False
    login: bool = False
    address: str = ""
    asked: list[str] = field(default_factory=list)

    def page(self) -> tuple[str, bytes]:
        link = "../../files/thing-1.0.tar.gz?a=1&b=2"
        if self.as_html:
            other = f'<a href="../../files/thing-0.9.tar.gz#sha256={"0" * 64}">older</a>'
            return "text/html", f'{other}<a href="{html.escape(link)}#sha256={self.sha256}">thing</a>'.encode()
        files = [{"url": "../../files/older", "hashes": {}}, {"url": link, "hashes": {"sha256": self.sha256}}]
        return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that PIP_INDEX_URL names, and nowhere else to look."""
    told = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(self.path)
            refused = told.login and self.headers.get("Authorization") != LOGIN
            if refused or not self.path.startswith(("/simple/llama-cpp-python/", "/files/thing-1.0.tar.gz?a=1&b=2")):
                self.send_error(401 if refused else 404)
                return
            kind, body = told.page() if self.path.startswith("/simple/") else ("application/gzip", told.content)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    told.address = f"http://127.0.0.1:{server.server_port}/simple/"
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "TIEREXPORT_ARCHIVE"):
        monkeypatch.delenv(name, raising=False)
    settings = {"PIP_INDEX_URL": told.address, "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": str(tmp_path / "none"),
                "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "TIEREXPORT_CACHE": str(tmp_path / "cache")}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(archive, "pin", lambda: PIN)
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip, as uv makes them."""
    for name in ("pip", "pip._internal.models.index"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a subprocess was started")

    monkeypatch.setattr(subprocess, "run", refused)


@pytest.mark.usefixtures("no_pip", "no_process")
@pytest.mark.parametrize("as_html", [False, True])
def test_one_fetch_serves_all_without_pip(index: Index, as_html: bool) -> None:
    index.as_html = as_html
    assert (archive.converter() / "conversion" / "__init__.py").read_text() == "text"
    assert not (archive.converter() / "ggml").exists()
    assert (archive.sources() / "ggml" / "ggml.c").read_text() == "text"
    assert archive.archive_file().read_bytes() == CONTENT
    assert index.asked == ["/simple/llama-cpp-python/", "/files/thing-1.0.tar.gz?a=1&b=2"]


def test_pip_is_not_asked_to_fetch_what_the_index_gives(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pip there, its settings are read, and nothing is built."""
    monkeypatch.setattr(archive, "_through_pip", lambda *_: pytest.fail("pip was asked"))
    assert archive.archive_file().read_bytes() == CONTENT


@pytest.mark.usefixtures("no_pip")
def test_a_damaged_archive_is_fetched_again(index: Index) -> None:
    archive.archive_file().write_bytes(b"half")
    assert archive.archive_file().read_bytes() == CONTENT
    assert len(index.asked) == 4


@pytest.mark.usefixtures("no_pip")
def test_a_login_stays_on_the_host_of_the_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.login = True
    monkeypatch.setenv("PIP_INDEX_URL", index.address.replace("//", "//me:secret@"))
    assert archive.archive_file().read_bytes() == CONTENT
    assert (
        package_index.with_login("http://elsewhere.test/file", "http://me:secret@127.0.0.1:1/simple")
        == "http://elsewhere.test/file"
    )


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda index: setattr(index, "content", b"something else"), "is damaged or not the pinned one"),
        (
            lambda index: setattr(index, "sha256", "0" * 64),
            "1 package index(es) that this machine is set up for did not give it",
        ),
        (lambda index: setattr(index, "login", True), "did not give it, and pip is not installed: set PIP_INDEX_URL"),
    ],
)
def test_what_is_not_the_pinned_archive_is_refused(index: Index, spoil: Callable[[Index], None], message: str) -> None:
    spoil(index)
    with pytest.raises(MachineError) as error:
        archive.converter()
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert not list(cache_dir().rglob("*.tar.gz"))


def test_pip_has_the_last_word(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the index can't give may lie where pip alone looks."""
    index.sha256 = "0" * 64
    (tmp_path / "found.tar.gz").write_bytes(CONTENT)
    monkeypatch.setattr(archive, "_through_pip", lambda *_: tmp_path / "found.tar.gz")
    assert archive.archive_file().read_bytes() == CONTENT


def test_the_index_is_the_installers_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment before pip's files, pip's files before uv's settings, these before pip's default, which needs pip."""
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex_url = http://a.test/simple/\nextra_index_url =\n  http://b.test\n  http://c.test\n")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://uv.test/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert package_index.indexes(package_index.pip_options())[0] == "http://a.test/simple"
    assert {"http://b.test", "http://c.test"} <= set(package_index.indexes(package_index.pip_options()))
    monkeypatch.setenv("PIP_INDEX_URL", "http://e.test/simple")
    assert package_index.indexes(package_index.pip_options())[0] == "http://e.test/simple"
    assert package_index.indexes({}) == ("http://uv.test/simple",)
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    assert len(package_index.indexes({})) == 1
    monkeypatch.setitem(sys.modules, "pip._internal.models.index", None)
    assert package_index.indexes({}) == ()
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.delenv("PIP_INDEX_URL")
    assert "no index is known, and pip is not installed: set PIP_INDEX_URL" in package_index.without_pip()
