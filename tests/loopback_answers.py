"""What the hub answers to huggingface_hub, one function for each question; none of them knows of connections."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from loopback_card import card_errors
from loopback_repository import Blob, Commit, Repository, User

if TYPE_CHECKING:
    from loopback_writable import WritableHub

Json = dict[str, Any]

LARGE = 10 * 2**20
"""The most bytes that a file outside LFS has."""


@dataclass(frozen=True)
class Asked:
    """A question to the hub: its body, who asks it, and what its headers and its query add."""

    hub: "WritableHub"
    body: bytes
    user: User | None
    signature: str | None
    range: str | None
    recursive: bool
    pull: bool = False

    @cached_property
    def json(self) -> Json:
        value: Json = json.loads(self.body)
        return value


@dataclass(frozen=True)
class Answer:
    """What the hub sends back, as JSON unless it is bytes."""

    content: bytes | Json | list[Json] = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()

    @property
    def type(self) -> str:
        return "application/octet-stream" if isinstance(self.content, bytes) else "application/json"


class RefusedError(Exception):
    """An answer other than the one asked for, with the hub's words and its code for the client."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        line = re.sub("[^ -~]", "?", message)
        headers = {"X-Error-Message": line, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer({"error": message, **body}, status, headers)


def failure(status: int) -> Answer:
    """How the hub itself fails, or what stands before it."""
    if status in (502, 503, 504):
        return Answer(f"<html><body><h1>{status}</h1></body></html>".encode(), status, {"Content-Type": "text/html"})
    return RefusedError(status, "Internal Error - We're working hard to fix this as soon as possible!").answer


def _repository(asked: Asked, name: str, write: bool = False) -> Repository:
    """The repository, if the user may see it, or write to it."""
    repository = asked.hub.repositories.get(name)
    owned = asked.user is not None and asked.user.owns(name)
    if asked.user is None and (write or repository is None or repository.private):
        raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
    if repository is None or (repository.private and not owned):
        raise RefusedError(404, "Repository not found", "RepoNotFound")
    if write and not (owned and asked.user and asked.user.role == "write"):
        raise RefusedError(403, "Authorization error.")
    return repository


def _commit_at(repository: Repository, revision: str) -> Commit:
    oid = repository.branches.get(revision, revision)
    if oid not in repository.commits:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return repository.commits[oid]


def _harnesses(asked: Asked) -> Answer:
    """Nothing that the client could find out about who calls it."""
    return Answer({"standardEnvVars": [], "harnesses": {}})


def _whoami(asked: Asked) -> Answer:
    if asked.user is None:
        raise RefusedError(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name} for name in asked.user.organizations]
    token = {"displayName": "loopback", "role": asked.user.role}
    return Answer(
        {"type": "user", "name": asked.user.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}
    )


def _create(asked: Asked) -> Answer:
    if asked.user is None:
        raise RefusedError(401, "Invalid username or password.")
    namespace = asked.json.get("organization") or asked.user.name
    name = f"{namespace}/{asked.json['name']}"
    url = f"{asked.hub.endpoint}/{name}"
    if asked.json.get("type") not in (None, "model"):
        raise RefusedError(501, "The loopback hub has no repositories but models'.")
    if not asked.user.owns(name) or asked.user.role != "write":
        raise RefusedError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    if name in asked.hub.repositories:
        raise RefusedError(409, "You already created this model repo", url=url)
    asked.hub.create(name, asked.json.get("visibility") == "private" or bool(asked.json.get("private")))
    return Answer({"url": url, "name": name, "id": name})


def _validate(asked: Asked) -> Answer:
    errors = card_errors(asked.json["content"])
    missing = "empty or missing yaml metadata in repo card"
    warnings = [{"message": missing}] if errors is None else []
    problems = [{"message": error} for error in errors or ()]
    return Answer({"errors": problems, "warnings": warnings}, 400 if problems else 200)


def _branch(asked: Asked, name: str, revision: str) -> Answer:
    repository = _repository(asked, name, write=True)
    if revision in repository.branches:
        raise RefusedError(409, f"Branch {revision} already exists")
    if revision.startswith("refs/"):
        raise RefusedError(400, f"Invalid reference for a branch: {revision}")
    repository.branches[revision] = _commit_at(repository, asked.json.get("startingPoint", "main")).oid
    return Answer({})


def _info(asked: Asked, name: str, revision: str | None) -> Answer:
    repository = _repository(asked, name)
    commit = _commit_at(repository, revision or "main")
    siblings = [
        {"rfilename": path, "size": len(blob.content), "blobId": blob.oid, **_lfs(blob, "sha256")}
        for path, blob in commit.files.items()
    ]
    state = {"private": repository.private, "gated": False, "disabled": False, "tags": []}
    return Answer({"id": name, "modelId": name, "sha": commit.oid, "siblings": siblings, **state})


def _lfs(blob: Blob, sha: str) -> Json:
    if not blob.lfs:
        return {}
    return {"lfs": {sha: blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}}


def _tree(asked: Asked, name: str, revision: str, path: str | None) -> Answer:
    """Files and folders under `path`, in it alone unless the question is recursive."""
    files = _commit_at(_repository(asked, name), revision).files
    prefix = f"{path}/" if path else ""
    entries: dict[str, Json] = {}
    for file, blob in files.items():
        if file.startswith(prefix):
            steps = [at for at, letter in enumerate(file) if letter == "/" and at > len(prefix)]
            for at in steps if asked.recursive else steps[:1]:
                within = "".join(other.oid for inner, other in files.items() if inner.startswith(file[: at + 1]))
                oid = hashlib.sha1(within.encode()).hexdigest()
                entries[file[:at]] = {"type": "directory", "path": file[:at], "oid": oid, "size": 0}
            if asked.recursive or not steps:
                entries[file] = {"type": "file", "path": file, "oid": blob.oid, "size": len(blob.content), **_lfs(blob, "oid")}
    if prefix and not entries:
        raise RefusedError(404, f"{path} does not exist on {revision}", "EntryNotFound")
    return Answer([entries[key] for key in sorted(entries)])


def _preupload(asked: Asked, name: str, revision: str) -> Answer:
    repository = _repository(asked, name, write=True)
    files = _commit_at(repository, revision).files
    modes = []
    for file in asked.json["files"]:
        path = file["path"]
        binary = b"\0" in base64.b64decode(file["sample"])
        mode = "lfs" if binary or file["size"] > LARGE or repository.tracks(path, revision) else "regular"
        there = {"oid": files[path].sha256 if files[path].lfs else files[path].oid} if path in files else {}
        modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
    return Answer({"files": modes})


def _batch(asked: Asked, name: str) -> Answer:
    objects = _repository(asked, name, write=True).objects
    return Answer({"transfer": "basic", "objects": [_upload(asked.hub, name, item, objects) for item in asked.json["objects"]]})


def _upload(hub: "WritableHub", name: str, item: Json, objects: Mapping[str, bytes]) -> Json:
    """Where the object is to be put, in parts if it is large, unless it is there already."""
    if item["oid"] in objects:
        return item
    place, signed = f"{hub.endpoint}/storage/{name}/{item['oid']}", f"?signature={hub.signature}"
    upload: Json = {"href": place + signed}
    if hub.part_size and item["size"] > hub.part_size:
        numbers = range(1, -(-item["size"] // hub.part_size) + 1)
        upload["header"] = {"chunk_size": str(hub.part_size), **{str(n): f"{place}/{n}{signed}" for n in numbers}}
    verify = {"href": f"{hub.endpoint}/{name}.git/info/lfs/objects/verify"}
    return {**item, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _verify(asked: Asked, name: str) -> Answer:
    content = _repository(asked, name, write=True).objects.get(asked.json["oid"])
    if content is None or len(content) != asked.json["size"]:
        raise RefusedError(404, "The object does not exist, or has another size.")
    return Answer({})


def _put(asked: Asked, name: str, oid: str, part: str | None) -> Answer:
    """An object, or a part of one, at the address that the batch gave."""
    if asked.signature != asked.hub.signature:
        raise RefusedError(403, "SignatureDoesNotMatch")
    if part is not None:
        asked.hub.parts[oid, int(part)] = asked.body
    else:
        _store(asked.hub.repositories[name], oid, asked.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"'})


def _complete(asked: Asked, name: str, oid: str) -> Answer:
    if asked.signature != asked.hub.signature:
        raise RefusedError(403, "SignatureDoesNotMatch")
    parts = [asked.hub.parts[oid, part["partNumber"]] for part in asked.json["parts"]]
    _store(asked.hub.repositories[name], oid, b"".join(parts))
    return Answer({})


def _store(repository: Repository, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise RefusedError(400, "BadDigest: the bytes are not those of the sha256")
    repository.objects[oid] = content


def _commit(asked: Asked, name: str, revision: str) -> Answer:
    """A commit of the operations that the lines hold, if its parent is still the head."""
    repository = _repository(asked, name, write=True)
    head = _commit_at(repository, revision)
    lines = [json.loads(line) for line in asked.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit", head.oid) != head.oid:
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    changes: dict[str, Blob | None] = {}
    for line in lines[1:]:
        changes.update(_change(repository, head, line["key"], line["value"]))
    card = changes.get("README.md")
    if card and (errors := card_errors(card.content.decode())):
        raise RefusedError(400, "; ".join(errors))
    number = sum(branch.startswith("refs/pr/") for branch in repository.branches) + 1
    if asked.pull:
        revision = f"refs/pr/{number}"
        repository.branches[revision] = head.oid
    commit = repository.add(changes, header["summary"], revision)
    place = f"{asked.hub.endpoint}/{name}"
    pull = {"pullRequestUrl": f"{place}/discussions/{number}"} if asked.pull else {}
    url = f"{place}/commit/{commit.oid}"
    return Answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": "", **pull})


def _change(repository: Repository, head: Commit, key: str, value: Json) -> Mapping[str, Blob | None]:
    path = value["path"]
    if key == "file":
        return {path: Blob(base64.b64decode(value["content"]))}
    if key == "lfsFile":
        if value["oid"] not in repository.objects:
            raise RefusedError(400, "LFS pointer pointed to a file that does not exist")
        return {path: Blob(repository.objects[value["oid"]], lfs=True)}
    gone = [file for file in head.files if file == path or (key == "deletedFolder" and file.startswith(f"{path.rstrip('/')}/"))]
    if not gone:
        raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
    return dict.fromkeys(gone)


def _resolve(asked: Asked, name: str, revision: str, path: str) -> Answer:
    commit = _commit_at(_repository(asked, name), revision)
    if path not in commit.files:
        raise RefusedError(404, "Entry not found", "EntryNotFound")
    blob = commit.files[path]
    size = len(blob.content)
    etag = f'"{blob.sha256 if blob.lfs else blob.oid}"'
    headers = {"X-Repo-Commit": commit.oid, "ETag": etag, "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": etag}
    bounds = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range or "")
    if bounds is None:
        return Answer(blob.content, headers=headers)
    first, last = int(bounds[1]), min(int(bounds[2] or size), size - 1)
    if first >= size:
        return Answer(status=416, headers={"Content-Range": f"bytes */{size}"})
    return Answer(blob.content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
STORAGE = rf"/storage/{NAME}/(?P<oid>[0-9a-f]{{64}})"
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", "/api/agent-harnesses", _harnesses),
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _validate),
    ("GET", f"/api/models/{NAME}(?:/revision/{REVISION})?", _info),
    ("GET", f"/api/models/{NAME}/tree/{REVISION}(?:/(?P<path>.+))?", _tree),
    ("POST", f"/api/models/{NAME}/branch/{REVISION}", _branch),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", _preupload),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", _commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _batch),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/verify", _verify),
    ("PUT", rf"{STORAGE}(?:/(?P<part>\d+))?", _put),
    ("POST", STORAGE, _complete),
    ("GET", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", _resolve),
)


def respond(method: str, path: str, asked: Asked) -> Answer:
    """The answer to a question that some function of the table knows; HEAD asks what GET asks."""
    for verb, pattern, answer in ROUTES:
        if verb == method.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
            return answer(asked, **{key: value and unquote(value) for key, value in match.groupdict().items()})
    raise RefusedError(501, f"The loopback hub does not know {method} {path}")
