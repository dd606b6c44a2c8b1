"""What a file, a folder or a hub's repository really holds, anybody's: native types by layer, bits, metadata, warnings.

Headers and small JSON files are read and nothing else, so on a hub no weights are downloaded.
"""

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from tierexport.artifact.folder import CODEC, MANIFEST
from tierexport.base.errors import ArtifactError, MachineError
from tierexport.base.hub import is_hub_id
from tierexport.base.records import Tensor
from tierexport.formats.artifacts import artifacts_at
from tierexport.formats.headers import Header, Omitted, Room, StoredTensor, read_gguf, read_safetensors
from tierexport.model.roles import UNQUANTIZED_ROLE, gguf_name, role_and_layer

MOST_LISTED, MOST_FILES = 10_000, 64
"""Entries of a folder or repository that are looked through, and files with weights that are shown."""

SMALL = BLOCK = 1 << 20
"""Bytes of the largest JSON file that is read, and of one request to a hub."""

POOLING_NAMES = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""llama.cpp's enum llama_pooling_type."""

K_QUANT_FALLBACKS = ("Q5_0", "Q5_1")
"""What llama-quantize silently makes of Q4_K and Q5_K where 256 does not divide the columns."""

TRAINED_TYPES = ("MXFP4", "NVFP4", "TQ1_0", "TQ2_0")
"""Types below 5 bits that models are trained in, so that no imatrix is missing."""

UNCRUSHED = ("F16", "F32", "BF16", "float16", "float32", "bfloat16")

Stored = tuple[Tensor, str, int]
"""A tensor, its native type, its bytes."""


@dataclass(frozen=True)
class Inspection:
    """One GGUF (all parts of it), or one folder's safetensors. `path` is a local path, or ORG/NAME@REVISION:PATH on a hub."""

    path: str
    format: str
    bytes: int
    tensors: tuple[Stored, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor, _, _ in self.tensors)

    @property
    def stored_bits(self) -> float:
        """Bits per parameter of the whole file."""
        return 8 * self.bytes / max(self.parameters, 1)

    def as_json(self) -> dict[str, Any]:
        """Everything found, as `inspect --json` prints it."""
        return {
            "path": self.path,
            "format": self.format,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "stored_bits": self.stored_bits,
            "metadata": {key: _plain(value) for key, value in self.metadata.items()},
            "warnings": list(self.warnings),
            "tensors": [{**tensor.as_json(), "type": native, "bytes": size} for tensor, native, size in self.tensors],
        }


def _plain(value: Any) -> Any:
    """A metadata value as JSON can hold it, which knows neither infinities nor arrays that were not kept."""
    if isinstance(value, Omitted):
        return {"type": value.type, "length": value.length}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def nominal_bits(native: str) -> int:
    """The bits in the name of a native type, IQ4_NL, Q8_0, int4, BF16, F8_E4M3: its first number, and 8 where it has none."""
    found = re.search(r"\d+", native)
    return int(found[0]) if found else 8


def inspect(target: str | Path) -> tuple[Inspection, ...]:
    """Everything at a path, or in a hub's ORG/NAME[@REVISION][:FILE] where no such path exists.

    Raises ArtifactError when there is nothing to show or something is damaged, MachineError when the
    hub can't be reached or sends whole files only.
    """
    path, hub_id = Path(target), str(target).partition(":")[0]
    if not path.exists() and is_hub_id(hub_id):
        places = [_there(str(target))]
    elif path.is_dir() and not (path / MANIFEST).is_file():
        places = [_here(path)]
    else:
        places = [_here(place) for _, place in artifacts_at(path)]
    room = Room()
    return tuple(_inspect(place, kind, names, room) for place in places for kind, names in _groups(place))


# --- where files lie


@dataclass(frozen=True)
class File:
    """A file that can be opened for reading parts of it, here or on a hub; `where` is what it is called."""

    where: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True)
class Place:
    """A folder or repository: its files by their paths in it. `alone` when one was asked for; `mark` as in ORG/NAME:PATH."""

    name: str
    files: Mapping[str, File]
    alone: bool
    mark: str = "/"


def _here(path: Path) -> Place:
    if not path.is_dir():
        try:
            return Place(str(path), {path.name: File(str(path), path.stat().st_size, partial(_opened_here, path))}, alone=True)
        except OSError as error:
            raise ArtifactError(f"can't read {path} ({error.strerror}): check the path") from None
    found = list(itertools.islice(path.rglob("*"), MOST_LISTED + 1))
    _check_listed(str(path), found)
    seen = {str(file.relative_to(path).as_posix()): file for file in found if file.is_file()}
    visible = {name: file for name, file in seen.items() if not any(part.startswith(".") for part in name.split("/"))}
    files = {name: File(str(file), file.stat().st_size, partial(_opened_here, file)) for name, file in visible.items()}
    return Place(str(path), files, alone=False)


@contextmanager
def _opened_here(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb", buffering=1 << 16) as opened:
            yield opened
    except OSError as error:
        raise ArtifactError(f"can't read {path} ({error.strerror}): check its permissions") from None


def _check_listed(name: str, found: Sequence[Any]) -> None:
    if len(found) > MOST_LISTED:
        raise ArtifactError(f"{name} holds more than {MOST_LISTED:,} files, which are not looked through: name one of them")


def _there(target: str) -> Place:
    """A repository of a hub at the commit that its revision has now."""
    import huggingface_hub

    name, _, file = target.partition(":")
    repository, _, revision = name.partition("@")
    with _hub_errors(name):
        api = huggingface_hub.HfApi()
        commit = api.repo_info(repository, revision=revision or None, timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT).sha
        listed: Iterable[Any] = (
            api.get_paths_info(repository, [file], revision=commit)
            if file
            else api.list_repo_tree(repository, recursive=True, revision=commit)
        )
        found = list(itertools.islice(listed, MOST_LISTED + 1))
    _check_listed(name, found)
    sizes = {each.path: each.size for each in found if isinstance(each, huggingface_hub.RepoFile)}
    if file and not sizes:
        raise ArtifactError(f"the hub's {name} has no file {file!r}: name {name} alone to see what it has")
    files = {
        path: File(f"{name}:{path}", size, partial(_opened_there, name, f"{repository}@{commit}/{path}", size))
        for path, size in sizes.items()
    }
    return Place(name, files, bool(file), ":")


@contextmanager
def _opened_there(name: str, path: str, size: int) -> Iterator[BinaryIO]:
    """A file of a hub, of which a BLOCK more than what is read is fetched, and no more."""
    import huggingface_hub

    with _hub_errors(name):
        hub = huggingface_hub.HfFileSystem()
        if size > BLOCK:
            _check_ranges(name, hub.url(path))
        with hub.open(path, "rb", block_size=BLOCK, size=size) as opened:
            yield cast(BinaryIO, io.BufferedReader(opened, 1 << 16))


def _check_ranges(name: str, url: str) -> None:
    """Raises MachineError when the hub answers a question for one byte with the whole file: that would be held in memory."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Range": "bytes=0-0"}
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206:
            raise MachineError(
                f"the hub sends whole files of {name} where a part is asked for (HTTP {answer.status_code} for a range): "
                "download the file with `hf download`, and inspect it here"
            )


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    from huggingface_hub import errors as hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever HTTP library it uses

    try:
        yield
    except hub.RepositoryNotFoundError as error:
        missing = "is no path here, and the hub has no such model, or it is private or gated"
        raise ArtifactError(f"{name} {missing}: check the name, or log in") from error
    except (hub.RevisionNotFoundError, hub.HFValidationError) as error:
        raise ArtifactError(f"the hub has no {name}: check the name and the revision") from error
    except (OSError, ValueError, HTTPError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        where = f"{name} is no path here, and can't be read on the hub ({first})"
        raise MachineError(f"{where}: check the path, or the network and HF_ENDPOINT") from error


def _groups(place: Place) -> list[tuple[str, list[str]]]:
    """What belongs together, as ("gguf" or "safetensors", paths): a split GGUF's parts, a model's shards and modules."""
    if place.alone:
        (name,) = place.files
        return [("safetensors" if name.endswith(".safetensors") else "gguf", [name])]
    found: dict[tuple[str, str], list[str]] = {}
    weights = sorted(
        name for name in place.files if name.endswith((".gguf", ".safetensors")) and PurePosixPath(name).name != CODEC
    )
    if len(weights) > MOST_FILES:
        raise ArtifactError(
            f"{place.name} holds {len(weights)} files with weights, and {MOST_FILES} are shown: name one of them"
        )
    for name in weights:
        if name.endswith(".gguf"):
            found.setdefault(("gguf", re.sub(r"-\d{5}-of-\d{5}\.gguf$", ".gguf", name)), []).append(name)
        else:
            found.setdefault(("safetensors", _home(place, name, weights)), []).append(name)
    if not found:
        raise ArtifactError(
            f"{place.name} holds no *.gguf and no *.safetensors: name a folder, a file or a repository with some"
        )
    return [(kind, names) for (kind, _), names in found.items()]


def _home(place: Place, name: str, weights: Sequence[str]) -> str:
    """The folder of the model that a file belongs to: the nearest with a modules.json, or else the topmost with weights."""
    folders = [str(parent) for parent in PurePosixPath(name).parents]
    with_modules = [folder for folder in folders if _join(folder, "modules.json") in place.files]
    holding = {str(PurePosixPath(each).parent) for each in weights if each.endswith(".safetensors")}
    return with_modules[0] if with_modules else [folder for folder in folders if folder in holding][-1]


def _join(folder: str, name: str) -> str:
    return str(PurePosixPath(folder, name))


def _inspect(place: Place, kind: str, names: Sequence[str], room: Room) -> Inspection:
    reader = read_gguf if kind == "gguf" else read_safetensors
    headers: dict[str, Header] = {}
    for name in names:
        file = place.files[name]
        with file.open() as opened:
            headers[name] = reader(opened, file.size, file.where, room)
    size = sum(place.files[name].size for name in names)
    return (_inspect_gguf if kind == "gguf" else _inspect_safetensors)(place, headers, size)


# --- GGUF


def _inspect_gguf(place: Place, headers: Mapping[str, Header], size: int) -> Inspection:
    first, *_ = headers
    metadata = dict(headers[first].metadata)
    tensors = tuple(_gguf_tensor(each) for header in headers.values() for each in header.tensors)
    warnings = tuple(_gguf_warnings(metadata, tensors))
    pooling = _own(metadata, "pooling_type")
    if pooling is not None:
        metadata["pooling"] = POOLING_NAMES.get(pooling, str(pooling)) if type(pooling) is int else str(pooling)
    return Inspection(place.files[first].where, "gguf", size, tensors, metadata, warnings)


def _gguf_tensor(stored: StoredTensor) -> Stored:
    return Tensor(stored.name, *role_and_layer(stored.name, stored.shape), stored.shape), stored.type, stored.bytes


def _own(metadata: Mapping[str, Any], key: str) -> Any:
    """The value of a key that begins with the architecture's name."""
    return metadata.get(f"{metadata.get('general.architecture')}.{key}")


def _gguf_warnings(metadata: Mapping[str, Any], tensors: Sequence[Stored]) -> Iterator[str]:
    is_model = metadata.get("general.type", "model") == "model"
    if is_model and "general.architecture" not in metadata:
        yield "no general.architecture: llama.cpp can't load it"
    elif is_model:
        if not _own(metadata, "pooling_type"):
            yield "no pooling type: llama.cpp returns one vector per token, not per text"
        yield from _end_token_warnings(metadata)
        yield from _context_warnings(metadata, tensors)
    fallen = [tensor for tensor, native, _ in tensors if native in K_QUANT_FALLBACKS and tensor.shape[-1] % 256]
    if fallen and any(native.endswith("_K") for _, native, _ in tensors):
        yield (
            f"{len(fallen)} tensors have a 5-bit type beside K-quants: llama-quantize falls back to it, without a "
            f"word, where 256 does not divide the columns ({fallen[0].name}: {fallen[0].shape[-1]})"
        )
    crushed = [native for tensor, native, _ in tensors if tensor.role != UNQUANTIZED_ROLE and nominal_bits(native) <= 4]
    if set(crushed) - set(TRAINED_TYPES) and not any(key.startswith("quantize.imatrix.") for key in metadata):
        yield f"{len(crushed)} tensors at 4 bits or below, and no quantize.imatrix.*: made without an imatrix, they lose more"
    yield from _table_warnings(tensors)


def _end_token_warnings(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What llama.cpp leaves off a text, or guesses, where the tokenizer's keys don't say it (llama-vocab.cpp)."""
    known = {name: metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "eos_token_id", "add_eos_token")}
    if _own(metadata, "pooling_type") == 3:
        if known["eos_token_id"] is None:
            yield "last-token pooling, and no tokenizer.ggml.eos_token_id: the vector is read at whatever ends the text"
        if not (known["model"] == "t5" if known["add_eos_token"] is None else known["add_eos_token"]):
            yield (
                "last-token pooling, and tokenizer.ggml.add_eos_token is not true: no end token is added, and the vector "
                "is read at the text's last word, unless the caller adds it"
            )
    if known["model"] == "bert" and "tokenizer.ggml.seperator_token_id" not in metadata:  # gguf spells it so
        yield "a BERT tokenizer without tokenizer.ggml.seperator_token_id: llama.cpp takes 102, right for BERT's own vocabulary"


def _context_warnings(metadata: Mapping[str, Any], tensors: Sequence[Stored]) -> Iterator[str]:
    context = _own(metadata, "context_length")
    if type(context) is not int:
        yield "no context_length: llama.cpp can't load it"
        return
    table = next((tensor for tensor, _, _ in tensors if tensor.name == "position_embd.weight"), None)
    if table and len(table.shape) == 2 and table.shape[0] < context:
        yield f"context_length is {context}, and the position table ends at {table.shape[0]}: longer texts read beyond it"


def _table_warnings(tensors: Sequence[Stored]) -> Iterator[str]:
    table = next((found for found in tensors if found[0].role == "token_embeddings"), None)
    if table and table[1] in UNCRUSHED and table[2] > sum(size for _, _, size in tensors) / 2:
        yield f"the token table at {table[1]} takes more than half of the bytes"


# --- safetensors

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PART = re.compile(r"\._weight_(qdata|scale|zero_point)$")


def _inspect_safetensors(place: Place, headers: Mapping[str, Header], size: int) -> Inspection:
    """Torchao stores a quantized tensor as several, and what they are as JSON in the metadata."""
    home = _home(place, min(headers, key=lambda name: name.count("/")), list(headers))
    parts: dict[str, list[StoredTensor]] = {}
    kinds: dict[str, str] = {}
    for name, header in headers.items():
        folder = PurePosixPath(name).parent
        prefix = "" if str(folder) == home else f"{folder.name}/"
        kinds |= {prefix + key: value for key, value in header.metadata.items()}
        for stored in header.tensors:
            parts.setdefault(prefix + _PART.sub(".weight", stored.name), []).append(stored)
    tensors = tuple(_safetensors_tensor(name, stored, kinds.get(name, "")) for name, stored in parts.items())
    metadata: dict[str, Any] = {key: value for key, value in kinds.items() if key not in parts}
    quantized = any(stored.name.endswith("._weight_qdata") for each in parts.values() for stored in each)
    warnings = list(_table_warnings(tensors))
    if not place.alone:
        config = _json(place, _join(home, "config.json"))
        pooling = _pooling(place, home)
        metadata |= {"pooling": pooling} if pooling else {}
        warnings += _folder_warnings(place, home, config, pooling, quantized)
    where = place.files[min(headers)].where if place.alone else f"{place.name}{place.mark}{home}".removesuffix(f"{place.mark}.")
    return Inspection(where, "torchao" if quantized else "safetensors", size, tensors, metadata, tuple(warnings))


def _folder_warnings(place: Place, home: str, config: Any, pooling: str | None, quantized: bool) -> Iterator[str]:
    if _join(home, "modules.json") not in place.files:
        yield "no modules.json: pooling is left to the reader's guess"
    elif pooling is None:
        yield "modules.json names no pooling: sentence-transformers returns one vector per token"
    if quantized and config is None:
        yield "quantized tensors, and no config.json: transformers can't load them"
    elif quantized and not (isinstance(config, dict) and config.get("quantization_config")):
        yield "quantized tensors, and no quantization_config in config.json: transformers can't place them"


def _safetensors_tensor(name: str, parts: Sequence[StoredTensor], kind: str) -> Stored:
    """One tensor of the model; `kind` is what torchao says of it."""
    size = sum(part.bytes for part in parts)
    stored = next((part for part in parts if part.name.endswith("_qdata")), None)
    if stored is None:
        shape, native = parts[0].shape, _NAMES.get(parts[0].type, parts[0].type)
    elif '"Int4Tensor"' in kind and stored.shape:
        shape, native = (*stored.shape[:-1], 2 * stored.shape[-1]), "int4"
    else:
        target = max(kind.find('"target_dtype"'), 0)
        bits = re.search(r'"int(\d)"', kind[target : target + 100])
        shape = stored.shape
        native = f"int{bits[1]}" if bits else "int8" if stored.type in ("I8", "U8") else stored.type
    return Tensor(name, *role_and_layer(gguf_name(name) or name, shape), shape), native, size


def _pooling(place: Place, home: str) -> str | None:
    """What sentence-transformers' Pooling module does, in its old or new words."""
    listed = _json(place, _join(home, "modules.json"))
    modules = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    for module in modules:
        if str(module.get("type")).endswith("Pooling"):
            config = _json(place, str(PurePosixPath(home, str(module.get("path")), "config.json")))
            settings = config if isinstance(config, dict) else {}
            on = [key for key in settings if key.startswith("pooling_mode_") and settings[key] is True]
            words = settings.get("pooling_mode") or " and ".join(re.sub("^pooling_mode_|_tokens?$", "", key) for key in on)
            return str(words).encode(errors="replace").decode() or None  # JSON can hold what nothing can print
    return None


def _json(place: Place, name: str) -> Any:
    """A JSON file of a place, None when it is not there. Raises ArtifactError when it is too large or no JSON."""
    file = place.files.get(name)
    if file is None:
        return None
    if file.size > SMALL:
        raise ArtifactError(
            f"{file.where} has {file.size:,} bytes, and {SMALL:,} are read: inspect the file with the weights alone"
        )
    with file.open() as opened:
        raw = opened.read(SMALL)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{file.where} is not JSON ({error}): get it again, or inspect the file with the weights alone"
        ) from None
