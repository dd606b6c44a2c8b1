"""Finds a file by its SHA-256 in the package indexes that this machine's installers are set up for, and fetches it.

Knows nothing of what is in it. Nothing is installed or built, and pip need not be there.
"""

import ast
import base64
import html
import http.client
import importlib
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 60
"""How long an index may be silent."""

ACCEPTED = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"
"""The simple API's two forms (PEP 691, PEP 503)."""

FAILURES = (OSError, http.client.HTTPException, ValueError)
"""What an index that is down, in the way or confused raises; an unknown file is none of them."""


def download(package: str, sha256: str, target: Path) -> bool:
    """Write a package's file of that digest to `target`, from the first index that has it; False where none does.

    What arrives is for the caller to check.
    """
    options = pip_options()
    for index in () if "NO_INDEX" in options else indexes(options):
        try:
            if link := link_of(index, package, sha256, options.get("CERT")):
                with _opened(link, "*/*", options.get("CERT")) as answer, target.open("wb") as file:
                    shutil.copyfileobj(answer, file)
                return True
        except FAILURES:
            target.unlink(missing_ok=True)
    return False


def without_pip() -> str:
    """What to say of an archive that no index gave, where there is no pip to ask either."""
    found = indexes(pip_options())
    asked = f"{len(found)} package index(es) that this machine is set up for did not give it" if found else "no index is known"
    return f"{asked}, and pip is not installed: set PIP_INDEX_URL to the package index, or install pip"


def pip_options() -> dict[str, str]:
    """Options of pip as its environment variables spell them ("CERT"): of its files, and of the environment, which wins."""
    said = {name.removeprefix("PIP_"): value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {**_pip_files(), **{name: value for name, value in said.items() if value}}


def indexes(options: dict[str, str]) -> tuple[str, ...]:
    """Addresses of the simple indexes to ask, in order: pip's or uv's own choice or pip's default, then further ones."""
    named = (options.get("INDEX_URL"), os.environ.get("UV_DEFAULT_INDEX"), os.environ.get("UV_INDEX_URL"))
    main = next(filter(None, named), None) or _default_of_pip()
    further = options.get("EXTRA_INDEX_URL", "").split()
    return tuple(each.rstrip("/") for each in (main, *further) if each)


def link_of(index: str, package: str, sha256: str, certificates: str | None = None) -> str | None:
    """The address of a package's file with that digest, or None where the index lists none.

    Raises OSError when the index can't be asked, ValueError for an answer that is none.
    """
    page = f"{index}/{re.sub(r'[-_.]+', '-', package).lower()}/"
    with _opened(page, ACCEPTED, certificates) as answer:
        text, kind, at = answer.read().decode("utf-8"), answer.headers.get_content_type(), answer.url
    links = _of_json(text, sha256) if kind.endswith("json") else _of_html(text, sha256)
    found = next(links, None)
    return with_login(urllib.parse.urljoin(at, found), index) if found else None


def _of_json(text: str, sha256: str) -> Iterator[str]:
    return (file["url"] for file in json.loads(text).get("files", ()) if file.get("hashes", {}).get("sha256") == sha256)


def _of_html(text: str, sha256: str) -> Iterator[str]:
    return (html.unescape(found[1]) for found in re.finditer(rf"""href=["']([^"'#]+)#sha256={sha256}["']""", text))


def _opened(address: str, accepted: str, certificates: str | None) -> Any:
    """The answer to a GET, at an address that may hold a login."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"an index of {parts.scheme!r} is pip's to read")
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(plain, headers={"Accept": accepted})  # noqa: S310  # looked at above
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    trusted = ssl.create_default_context(cafile=certificates)
    return urllib.request.urlopen(request, timeout=SECONDS, context=trusted)  # noqa: S310


def with_login(link: str, index: str) -> str:
    """A file's address, with the login of the index where both are on one host."""
    ours, theirs = urllib.parse.urlsplit(index), urllib.parse.urlsplit(link)
    same = (ours.scheme, ours.hostname, ours.port) == (theirs.scheme, theirs.hostname, theirs.port)
    return theirs._replace(netloc=ours.netloc).geturl() if same else link


def _pip_files() -> dict[str, str]:
    """Options of pip's configuration files that hold for downloads; none where there is no pip."""
    if importlib.util.find_spec("pip") is None:
        return {}
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    said = re.findall(r"^(global|install|download)\.([\w-]+)=(['\"].*)$", listed, re.MULTILINE)
    ordered = sorted(said, key=lambda each: ("global", "install", "download").index(each[0]))
    return {name.replace("-", "_").upper(): str(ast.literal_eval(value)) for _, name, value in ordered}


def _default_of_pip() -> str | None:
    """The index that pip asks where nothing else is configured."""
    try:
        return str(importlib.import_module("pip._internal.models.index").PyPI.simple_url)
    except (ImportError, AttributeError):
        return None
