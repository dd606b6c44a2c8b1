"""Codecs and codes as safetensors files, and as indexes of faiss."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tierexport.artifact.folder import CODEC
from tierexport.artifact.manifest import VectorsEntry
from tierexport.base.errors import VectorError
from tierexport.base.libraries import import_faiss
from tierexport.base.tensor_file import Parts, write_tensors
from tierexport.metrics.topk import blocks
from tierexport.vectors.arrays import Bytes
from tierexport.vectors.codecs import CELLS, Codec
from tierexport.vectors.packing import check_codes, pack, unpack
from tierexport.vectors.tables import Table

VERSIONS = ("1", "2")
"""What is read. A codec is of the first that can hold it: 2 adds tables of cells and the first dimensions alone."""

FAISS_ROWS = 4096
"""Codes that are laid out for faiss together."""


def write_codec(path: Path, codec: Codec, codes: Bytes | Parts | None = None) -> None:
    """A codec, with the codes that it made of vectors where there are some, written whole or not at all.

    Codes in parts are never in memory at once.
    """
    further = {"rotation": codec.rotation, "probe": codec.probe, "codes": codes}
    arrays = cell_arrays(codec) | {name: array for name, array in further.items() if array is not None}
    flags = {"per_vector": codec.per_vector, "asymmetric": codec.asymmetric}
    compared = {} if codec.similarity == "cosine" else {"similarity": codec.similarity}
    cut = {} if codec.cut_from is None else {"cut_from": codec.cut_from}
    version = VERSIONS[bool(codec.table or cut)]
    settings = json.dumps({"version": version, "level": codec.level, **flags, **compared, **cut})
    write_tensors(path, arrays, "tierexport.codec", settings)


def read_codec(path: Path | str) -> tuple[Codec, Bytes | None]:
    """What `write_codec` wrote; the codes are mapped from the file, which may be larger than memory.

    Raises VectorError for anything else.
    """
    try:
        settings, arrays = _held(Path(path))
        if settings["version"] not in VERSIONS:
            read = " and ".join(VERSIONS)
            raise VectorError(f"{path} is a codec of version {settings['version']!r}, and {read} are read: update tierexport")
        codec = _codec(settings, arrays)
        if "codes" in arrays:
            check_codes(arrays["codes"], codec.level, codec.width)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise VectorError(f"{path} is no codec that tierexport wrote: {error!r}") from None
    return codec, arrays.get("codes")


def _held(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A file's settings and arrays, as what is in a file comes: unchecked."""
    with safe_open(path, framework="np") as file:
        settings = json.loads((file.metadata() or {})["tierexport.codec"])
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # not a dict
        mapped = types.get("codes") == "U8"
        arrays = {name: file.get_tensor(name) for name in types if name != "codes" or not mapped}
    return settings, arrays | ({"codes": _mapped(path)} if mapped else {})


def _mapped(path: Path) -> Bytes:
    """The codes in a safetensors file, mapped. The header, JSON after its length in eight bytes, says where they lie."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["codes"]
    first, _ = entry["data_offsets"]
    shape = tuple(entry["shape"])
    return np.memmap(path, np.uint8, "r", 8 + size + first, shape) if np.prod(shape) else np.zeros(shape, np.uint8)


def _codec(settings: Mapping[str, Any], arrays: Mapping[str, Any]) -> Codec:
    """The codec of a file's settings and arrays. Raises KeyError, TypeError, ValueError or VectorError for what is none."""
    flags = settings["per_vector"], settings["asymmetric"]
    if not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(f"{flags} have to be true or false")
    cut_from = settings.get("cut_from")
    if cut_from is not None and type(cut_from) is not int:
        raise TypeError(f"{cut_from!r} has to be a number of dimensions")
    return Codec(
        level=settings["level"],
        **cells_in(arrays),
        per_vector=flags[0],
        rotation=_rotation(arrays),
        asymmetric=flags[1],
        probe=arrays.get("probe"),
        similarity=settings.get("similarity", "cosine"),
        cut_from=cut_from,
    )


def cell_arrays(codec: Codec) -> dict[str, Any]:
    """A codec's cells as a file holds them, by name."""
    bounds = {"low": codec.low, "high": codec.high}
    return bounds if codec.table is None else bounds | {"borders": codec.table.borders, "centers": codec.table.centers}


def cells_in(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What a Codec takes of `cell_arrays`. Raises KeyError where some are missing."""
    table = Table(arrays["borders"], arrays["centers"]) if "borders" in arrays else None
    return {"low": arrays["low"], "high": arrays["high"], "table": table}


def is_codec(path: Path) -> bool:
    """Whether a file is a codec that `write_codec` wrote, by its header."""
    try:
        with safe_open(path, framework="np") as file:
            return "tierexport.codec" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _rotation(arrays: Mapping[str, Any]) -> Any:
    """The rotation among a file's arrays, or None. Raises ValueError where its rows are not orthonormal."""
    found = arrays.get("rotation")
    with np.errstate(over="ignore", invalid="ignore"):
        if found is not None and not np.allclose(found @ found.T, np.eye(len(found)), atol=1e-3):
            raise ValueError("the rows of its rotation are not orthonormal")
    return found


def to_faiss(codec: Codec, codes: Bytes) -> Any:
    """A faiss index of these codes: IndexBinaryFlat for binary, IndexScalarQuantizer of 8 bits for int8, of 4 for the others,
    which have as many cells or fewer.

    It ranks by dot products, also where the codec's similarity is a cosine, or by distances. A rotation is left to the caller:
    `codec.prepared` turns queries as the codes were. Raises VectorError for tables, which faiss lacks, and for odd dimensions
    at 4 bits, whose last half byte faiss stores in another place.
    """
    check_codes(codes, codec.level, codec.width)
    faiss = import_faiss()
    if codec.table is not None and codec.level != "binary":
        raise VectorError("faiss has cells of equal width alone: fit with another --scaling than quantile or lloyd")
    if codec.level == "binary":
        bits = faiss.IndexBinaryFlat(8 * codec.bytes)
        bits.add(np.ascontiguousarray(codes))
        return bits
    kind, level = ("QT_8bit", "int8") if codec.level == "int8" else ("QT_4bit", "int4")
    if level == "int4" and codec.width % 2:
        raise VectorError(f"faiss lays {codec.width} dimensions of 4 bits, an odd number, out otherwise")
    metric = faiss.METRIC_L2 if codec.similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.IndexScalarQuantizer(codec.width, getattr(faiss.ScalarQuantizer, kind), metric)
    scale, offset = codec.line
    faiss.copy_array_to_vector(np.concatenate([offset - scale / 2, scale * CELLS[level]]), index.sq.trained)
    index.is_trained = True
    index.codes.resize(len(codes) * index.code_size)
    index.ntotal = len(codes)
    held = faiss.rev_swig_ptr(index.codes.data(), index.codes.size()).reshape(len(codes), index.code_size)
    for rows in blocks(len(codes), FAISS_ROWS):
        held[rows] = codes[rows] if level == codec.level else pack(unpack(codes[rows], codec.level, codec.width), level)
    return index


def codec_entry(codec: Codec) -> VectorsEntry:
    """What a manifest says of a codec that lies in its folder."""
    return VectorsEntry(path=CODEC, stored=codec.name, **codec.as_json())
