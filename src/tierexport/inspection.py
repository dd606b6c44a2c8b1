"""What a file or folder really holds, anybody's: native types by layer, bits, metadata, warnings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tierexport.artifact import artifacts_at
from tierexport.formats import gguf as gguf_format
from tierexport.formats import torchao as torchao_format
from tierexport.records import Tensor

POOLING_NAMES = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""llama.cpp's enum llama_pooling_type."""

K_QUANT_FALLBACKS = ("Q5_0", "Q5_1")
"""What llama-quantize silently makes of Q4_K and Q5_K where 256 does not divide the columns."""


@dataclass(frozen=True)
class Inspection:
    """One GGUF file or torchao folder: `tensors` as (tensor, native type, bytes)."""

    path: Path
    format: str
    bytes: int
    tensors: tuple[tuple[Tensor, str, int], ...]
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
            "path": str(self.path),
            "format": self.format,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "stored_bits": self.stored_bits,
            "metadata": dict(self.metadata),
            "warnings": list(self.warnings),
            "tensors": [{**tensor.as_json(), "type": native, "bytes": size} for tensor, native, size in self.tensors],
        }


def inspect(path: Path) -> tuple[Inspection, ...]:
    """Every artifact at a path: a GGUF, a safetensors folder, or a folder that tierexport built.

    Raises ArtifactError when there is none, or one is damaged.
    """
    return tuple(_inspect_gguf(place) if name == "gguf" else _inspect_folder(place) for name, place in artifacts_at(path))


def _inspect_folder(path: Path) -> Inspection:
    tensors = torchao_format.read_tensors(path)
    warnings = [] if (path / "modules.json").is_file() else ["no modules.json: pooling is left to the reader's guess"]
    return Inspection(path, "torchao", torchao_format.weight_bytes(path), tensors, {}, tuple(warnings))


def _inspect_gguf(path: Path) -> Inspection:
    reader = gguf_format.open_gguf(path)
    fields = {name: found for name, found in reader.fields.items() if not name.startswith(("tokenizer.", "GGUF."))}
    metadata = {name: found.contents() for name, found in fields.items()}
    architecture = metadata.get("general.architecture")
    pooling = metadata.get(f"{architecture}.pooling_type")
    if pooling is not None:
        metadata["pooling"] = POOLING_NAMES.get(pooling, str(pooling))
    tensors = gguf_format.read_tensors(path)
    return Inspection(path, "gguf", path.stat().st_size, tensors, metadata, tuple(_warnings(tensors, pooling)))


def _warnings(tensors: tuple[tuple[Tensor, str, int], ...], pooling: int | None) -> list[str]:
    warnings = [] if pooling else ["no pooling type: llama.cpp returns one vector per token, not per text"]
    fallen = [tensor for tensor, native, _ in tensors if native in K_QUANT_FALLBACKS and tensor.shape[-1] % 256]
    if fallen and any(native.endswith("_K") for _, native, _ in tensors):
        warnings.append(
            f"{len(fallen)} tensors have a 5-bit type beside K-quants: llama-quantize falls back to it, without a "
            f"word, where 256 does not divide the columns ({fallen[0].name}: {fallen[0].shape[-1]})"
        )
    table = next((found for found in tensors if found[0].role == "token_embeddings"), None)
    if table and table[1] in ("F16", "F32") and table[2] > sum(size for _, _, size in tensors) / 2:
        warnings.append(f"the token table at {table[1]} takes more than half of the bytes")
    return warnings
