"""What a folder's safetensors really hold, anybody's: torchao's quantized tensors, or plain ones."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tierexport.artifact.stored import StoredTensor
from tierexport.base.listing import Listing
from tierexport.base.records import Tensor
from tierexport.formats.header import Header, HeaderEntry, Room
from tierexport.formats.inspection import Inspection, read_headers, table_warnings, whole_bytes
from tierexport.formats.torchao.header import read_safetensors_header
from tierexport.formats.torchao.types import DYNAMIC
from tierexport.model.roles import gguf_name, role_and_layer

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's names of safetensors' dtypes, where they differ in more than case."""

_PART = re.compile(r"\._weight_(qdata|scale|zero_point|act_pre_scale)$")
"""How torchao names the parts of a quantized weight."""


# --- which files belong together


def same_model(listing: Listing, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of files by the model that they belong to: its shards, and the weights of the modules after the transformer."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(model_folder(listing, name, names), []).append(name)
    return [tuple(each) for each in found.values()]


def model_folder(listing: Listing, name: str, weights: Iterable[str]) -> str:
    """The folder of the model that a file belongs to: the nearest with a modules.json, or else the topmost with weights."""
    folders = [str(parent) for parent in PurePosixPath(name).parents]
    with_modules = [folder for folder in folders if _join(folder, "modules.json") in listing.files]
    holding = {str(PurePosixPath(each).parent) for each in weights}
    return with_modules[0] if with_modules else [folder for folder in folders if folder in holding][-1]


def _join(folder: str, name: str) -> str:
    return str(PurePosixPath(folder, name))


# --- one model


@dataclass
class _Content:
    """What the files of a model hold together: entries by the weight that they are parts of, and the metadata."""

    parts: dict[str, list[HeaderEntry]]
    metadata: dict[str, str]

    @property
    def quantized(self) -> bool:
        """Whether torchao stored any of it."""
        return any(each.name.endswith("._weight_qdata") for entries in self.parts.values() for each in entries)


def inspect_safetensors(listing: Listing, names: Sequence[str], room: Room) -> Inspection:
    """What one model's files hold, in torchao's quantized tensors or plain ones. Raises ArtifactError, MachineError."""
    headers = read_headers(listing, names, read_safetensors_header, room)
    home = model_folder(listing, min(names, key=lambda name: name.count("/")), names)
    content = _collected(headers, home)
    tensors = tuple(_stored(name, parts, content.metadata.get(name, "")) for name, parts in content.parts.items())
    metadata: dict[str, Any] = {key: value for key, value in content.metadata.items() if key not in content.parts}
    warnings = list(table_warnings(tensors))
    if not listing.alone:
        config = listing.read_json(_join(home, "config.json"))
        pooling = _pooling(listing, home)
        metadata |= {"pooling": pooling} if pooling else {}
        warnings += _folder_warnings(listing, home, config, pooling, content.quantized)
    where = listing.files[names[0]].where if listing.alone else listing.called(home)
    kind = "torchao" if content.quantized else "safetensors"
    return Inspection(where, kind, whole_bytes(listing, names), tensors, metadata, tuple(warnings))


def _collected(headers: Mapping[str, Header], home: str) -> _Content:
    """What the files hold by the model's names: FOLDER/NAME in a folder of a module.

    torchao stores a quantized tensor as several, and what they are as JSON in the metadata.
    """
    content = _Content({}, {})
    for name, header in headers.items():
        folder = PurePosixPath(name).parent
        prefix = "" if str(folder) == home else f"{folder.name}/"
        content.metadata |= {prefix + key: value for key, value in header.metadata.items()}
        for entry in header.tensors:
            content.parts.setdefault(prefix + _PART.sub(".weight", entry.name), []).append(entry)
    return content


def _stored(name: str, parts: Sequence[HeaderEntry], described: str) -> StoredTensor:
    """One tensor of the model; `described` is what torchao says of it."""
    codes = next((part for part in parts if part.name.endswith("_qdata")), None)
    if codes is None:
        shape, native = parts[0].shape, TORCH_NAMES.get(parts[0].type, parts[0].type)
    elif '"Int4Tensor"' in described and codes.shape:
        shape, native = (*codes.shape[:-1], 2 * codes.shape[-1]), "int4"  # two values in a byte
    else:
        shape, native = codes.shape, _native_type(codes, described)
    tensor = Tensor(name, *role_and_layer(gguf_name(name) or name, shape), shape)
    return StoredTensor(tensor, native, sum(part.bytes for part in parts))


def _native_type(codes: HeaderEntry, described: str) -> str:
    """The type of a tensor with a byte per value: torchao's `target_dtype`, or else that of the codes."""
    if '"QuantizeTensorToInt8Kwargs"' in described:
        return DYNAMIC
    target = max(described.find('"target_dtype"'), 0)
    bits = re.search(r'"int(\d)"', described[target : target + 100])
    return f"int{bits[1]}" if bits else "int8" if codes.type in ("I8", "U8") else codes.type


# --- what lies beside the weights


def _folder_warnings(listing: Listing, home: str, config: Any, pooling: str | None, quantized: bool) -> Iterator[str]:
    if _join(home, "modules.json") not in listing.files:
        yield "no modules.json: pooling is left to the reader's guess"
    elif pooling is None:
        yield "modules.json names no pooling: sentence-transformers returns one vector per token"
    if quantized and config is None:
        yield "quantized tensors, and no config.json: transformers can't load them"
    elif quantized and not (isinstance(config, dict) and config.get("quantization_config")):
        yield "quantized tensors, and no quantization_config in config.json: transformers can't place them"


def _pooling(listing: Listing, home: str) -> str | None:
    """What sentence-transformers' Pooling module does, in its old or new words."""
    listed = listing.read_json(_join(home, "modules.json"))
    modules = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    for module in modules:
        if str(module.get("type")).endswith("Pooling"):
            config = listing.read_json(str(PurePosixPath(home, str(module.get("path")), "config.json")))
            return _pooling_words(config if isinstance(config, dict) else {})
    return None


def _pooling_words(settings: Mapping[str, Any]) -> str | None:
    on = [key for key in settings if key.startswith("pooling_mode_") and settings[key] is True]
    words = settings.get("pooling_mode") or " and ".join(re.sub("^pooling_mode_|_tokens?$", "", key) for key in on)
    return str(words).encode(errors="replace").decode() or None  # JSON can hold what nothing can print
