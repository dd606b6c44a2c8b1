"""What a GGUF really holds, anybody's, and what is known to go wrong with such a file in llama.cpp."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tierexport.artifact.stored import StoredTensor, nominal_bits
from tierexport.base.listing import Listing
from tierexport.base.records import Tensor
from tierexport.formats.gguf.header import read_gguf_header
from tierexport.formats.header import HeaderEntry, Room
from tierexport.formats.inspection import Inspection, read_headers, table_warnings, whole_bytes
from tierexport.model.roles import UNQUANTIZED_ROLE, role_and_layer

POOLING_NAMES = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""llama.cpp's enum llama_pooling_type."""

LAST_TOKEN = 3
"""Of these, the vector of a text's last token."""

K_QUANT_FALLBACKS = ("Q5_0", "Q5_1")
"""What llama-quantize silently makes of Q4_K and Q5_K where 256 does not divide the columns."""

TRAINED_TYPES = ("MXFP4", "NVFP4", "TQ1_0", "TQ2_0")
"""Types below 5 bits that models are trained in, so that no imatrix is missing."""

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def split_parts(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of files by the GGUF that they are parts of: NAME-00001-of-00002.gguf and the like belong together."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_PART.sub(".gguf", name), []).append(name)
    return [tuple(each) for each in found.values()]


def inspect_gguf(listing: Listing, names: Sequence[str], room: Room) -> Inspection:
    """What all parts of one GGUF hold; the metadata are those of the first. Raises ArtifactError, MachineError."""
    headers = read_headers(listing, names, read_gguf_header, room)
    metadata = dict(headers[names[0]].metadata)
    tensors = tuple(_stored(each) for header in headers.values() for each in header.tensors)
    warnings = tuple(_warnings(metadata, tensors))
    pooling = _own(metadata, "pooling_type")
    if pooling is not None:
        metadata["pooling"] = POOLING_NAMES.get(pooling, str(pooling)) if type(pooling) is int else str(pooling)
    return Inspection(listing.files[names[0]].where, "gguf", whole_bytes(listing, names), tensors, metadata, warnings)


def _stored(entry: HeaderEntry) -> StoredTensor:
    return StoredTensor(Tensor(entry.name, *role_and_layer(entry.name, entry.shape), entry.shape), entry.type, entry.bytes)


def _own(metadata: Mapping[str, Any], key: str) -> Any:
    """The value of a key that begins with the architecture's name."""
    return metadata.get(f"{metadata.get('general.architecture')}.{key}")


# --- warnings


def _warnings(metadata: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> Iterator[str]:
    if metadata.get("general.type", "model") == "model":
        yield from _model_warnings(metadata, tensors)
    yield from _fallback_warnings(tensors)
    yield from _imatrix_warnings(metadata, tensors)
    yield from table_warnings(tensors)


def _model_warnings(metadata: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> Iterator[str]:
    """Keys without which llama.cpp can't load a model, or makes something else of a text."""
    if "general.architecture" not in metadata:
        yield "no general.architecture: llama.cpp can't load it"
        return
    if not _own(metadata, "pooling_type"):
        yield "no pooling type: llama.cpp returns one vector per token, not per text"
    yield from _end_token_warnings(metadata)
    yield from _context_warnings(metadata, tensors)


def _end_token_warnings(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What llama.cpp leaves off a text, or guesses, where the tokenizer's keys don't say it (llama-vocab.cpp)."""
    known = {name: metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "eos_token_id", "add_eos_token")}
    if _own(metadata, "pooling_type") == LAST_TOKEN:
        if known["eos_token_id"] is None:
            yield "last-token pooling, and no tokenizer.ggml.eos_token_id: the vector is read at whatever ends the text"
        if not (known["model"] == "t5" if known["add_eos_token"] is None else known["add_eos_token"]):
            yield (
                "last-token pooling, and tokenizer.ggml.add_eos_token is not true: no end token is added, and the vector "
                "is read at the text's last word, unless the caller adds it"
            )
    if known["model"] == "bert" and "tokenizer.ggml.seperator_token_id" not in metadata:  # gguf spells it so
        yield "a BERT tokenizer without tokenizer.ggml.seperator_token_id: llama.cpp takes 102, right for BERT's own vocabulary"


def _context_warnings(metadata: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> Iterator[str]:
    context = _own(metadata, "context_length")
    if type(context) is not int:
        yield "no context_length: llama.cpp can't load it"
        return
    table = next((each.tensor for each in tensors if each.tensor.name == "position_embd.weight"), None)
    if table and len(table.shape) == 2 and table.shape[0] < context:
        yield f"context_length is {context}, and the position table ends at {table.shape[0]}: longer texts read beyond it"


def _fallback_warnings(tensors: Sequence[StoredTensor]) -> Iterator[str]:
    """Warns of tensors that llama-quantize stored in another type than was asked for."""
    fallen = [each.tensor for each in tensors if each.type in K_QUANT_FALLBACKS and each.tensor.shape[-1] % 256]
    if fallen and any(each.type.endswith("_K") for each in tensors):
        yield (
            f"{len(fallen)} tensors have a 5-bit type beside K-quants: llama-quantize falls back to it, without a "
            f"word, where 256 does not divide the columns ({fallen[0].name}: {fallen[0].shape[-1]})"
        )


def _imatrix_warnings(metadata: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> Iterator[str]:
    """Warns of low bits without a trace of an imatrix."""
    low = [each.type for each in tensors if each.tensor.role != UNQUANTIZED_ROLE and nominal_bits(each.type) <= 4]
    if set(low) - set(TRAINED_TYPES) and not any(key.startswith("quantize.imatrix.") for key in metadata):
        yield f"{len(low)} tensors at 4 bits or below, and no quantize.imatrix.*: made without an imatrix, they lose more"
