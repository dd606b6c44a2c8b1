"""Writes a GGUF: the converted model's tensors, quantized as planned, under metadata that say how."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tierexport.base.errors import PlanError
from tierexport.base.records import Floats, Imatrix, Source
from tierexport.formats.gguf import ggml
from tierexport.formats.gguf.convert import converted
from tierexport.formats.gguf.read import WholeArrays
from tierexport.formats.job import Job, Progress
from tierexport.model.batches import prompt_for
from tierexport.model.roles import UNQUANTIZED_ROLE, gguf_name
from tierexport.quantize.codes import Codes
from tierexport.quantize.floor import floored
from tierexport.quantize.grids import GGUF_GRIDS
from tierexport.quantize.packing import pack
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.planned import FormatPlan, PlannedTensor

_FILE_TYPES = {"F32": "ALL_F32", **{f"Q{bits}_K": f"MOSTLY_Q{bits}_K_M" for bits in (3, 4, 5)}}
"""`general.file_type` (enum llama_ftype) of the type that most parameters have, where it is not MOSTLY_TYPE."""


def targets(job: Job) -> list[Target]:
    """The matrices of a plan as rounding layer by layer sees them."""
    data = Unquantized(job.source)

    def target(row: PlannedTensor) -> Target:
        def values() -> Floats:
            found: Floats = data[row.tensor.name].astype(np.float32).reshape(row.tensor.shape)
            return found

        def nearest() -> Floats:
            raw = _quantized(row, values(), job.imatrix, None)
            found: Floats = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[row.type]).astype(np.float32)
            return found.reshape(row.tensor.shape)

        return Target(row.tensor, values, nearest, GGUF_GRIDS[row.type] if row.rounding != "nearest" else None)

    quantized = (row for row in job.plan.rows if row.type != "F32" and row.tensor.role != UNQUANTIZED_ROLE)
    return [target(row) for row in quantized if len(row.tensor.shape) == 2]


def tunable(job: Job, parameters: Mapping[str, Floats]) -> list[str]:
    """Which of a model's parameters the file keeps in fp32 as they are, biases and norms, by the parameters' names.

    A norm that the converter shifts (Gemma's) is not among them.
    """
    data = Unquantized(job.source)
    kept = {row.tensor.name for row in job.plan.rows if row.type == "F32" and len(row.tensor.shape) == 1}
    names = {name: gguf_name(name) for name in parameters}
    return [name for name, ours in names.items() if ours in kept and np.array_equal(data[ours], parameters[name])]


def write_gguf(job: Job, rounded: Rounded, path: Path, progress: Progress) -> None:
    """Quantize the converted model as planned and write it. `progress`: called with the parameters done.

    A tensor with codes is stored by them, one with new values in fp32 by those, the others are rounded by
    ggml. Raises PlanError when a value does not fit its type.
    """
    data = Unquantized(job.source)
    writer = _begun(job, path)
    changed = {gguf_name(name): values for name, values in rounded.fp32.items()}
    for row in job.plan.rows:
        values = changed[row.tensor.name] if row.tensor.name in changed else data[row.tensor.name]
        writer.write_tensor_data(_quantized(row, values, job.imatrix, rounded.codes.get(row.tensor.name)))
        progress(row.tensor.parameters)
    writer.close()


class Unquantized(Mapping[str, Any]):
    """The converted model's tensors by name, each read when it is asked for: of a mapped file all that was read would stay."""

    def __init__(self, source: Source) -> None:
        self._path = converted(source)
        self._tensors = {tensor.name: tensor for tensor in WholeArrays(self._path).tensors}

    def __getitem__(self, name: str) -> Any:
        tensor = self._tensors[name]
        found = np.fromfile(self._path, tensor.data.dtype, tensor.data.size, offset=int(tensor.data_offset))
        return found.reshape(tensor.data.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def file_bytes(job: Job) -> int:
    """The size to the byte of the file that `write_gguf` would write."""
    with tempfile.TemporaryDirectory() as scratch:
        header = Path(scratch) / "header.gguf"
        _begun(job, header).close()
        return padded(header.stat().st_size) + sum(padded(row.bytes) for row in job.plan.rows)


def padded(size: int) -> int:
    """What `size` bytes take in a file, in which every tensor starts at a multiple of 32."""
    return int(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT))


def _begun(job: Job, path: Path) -> gguf.GGUFWriter:
    """A file with everything but the tensors' data."""
    fp32 = WholeArrays(converted(job.source))
    writer = gguf.GGUFWriter(path, arch=fp32.get_field("general.architecture").contents())
    _copy_metadata(fp32, writer)
    _add_metadata(job, writer)
    for row in job.plan.rows:
        native = gguf.GGMLQuantizationType[row.type]
        writer.add_tensor_info(row.tensor.name, _stored_shape(row), np.dtype(np.uint8), row.bytes, raw_dtype=native)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _stored_shape(row: PlannedTensor) -> tuple[int, ...]:
    """Gguf takes the shape of the bytes and works out the values."""
    *rows, columns = row.tensor.shape
    return (*rows, ggml.row_bytes(gguf.GGMLQuantizationType[row.type], columns))


def _quantized(row: PlannedTensor, values: Any, imatrix: Imatrix, codes: Codes | None) -> Any:
    if codes is not None:
        whole = pack(codes)
    else:
        means = imatrix.means.get(row.tensor.name)
        shaped = values.reshape(row.tensor.shape)
        pieces = ggml.quantize(shaped, gguf.GGMLQuantizationType[row.type], None if means is None else floored(means))
        whole = np.concatenate(list(pieces))
    if row.type == "F16" and not np.isfinite(whole.view(np.float16)).all():
        raise PlanError(f"{row.tensor.name} has values beyond fp16's range: give its tier 32 bits")
    if whole.nbytes != row.bytes:
        raise RuntimeError(f"{row.tensor.name}: {whole.nbytes} bytes where {row.bytes} were planned")
    return whole


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


def _add_metadata(job: Job, writer: gguf.GGUFWriter) -> None:
    """Replaces what the converter said of the fp32 file."""
    for key, value in _metadata(job).items():
        if value is None:
            continue
        for shard in writer.kv_data:
            shard.pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
            writer.add_key_value(key, value, kind)


def _file_type(plan: FormatPlan) -> int:
    """llama.cpp's name for a file of which most parameters have the type that they have here."""
    by_type: dict[str, int] = {}
    for row in plan.rows:
        by_type[row.type] = by_type.get(row.type, 0) + row.tensor.parameters
    most = max(by_type, key=lambda name: by_type[name])
    return int(gguf.LlamaFileType[_FILE_TYPES.get(most, f"MOSTLY_{most}")])


def _metadata(job: Job) -> dict[str, str | int | list[str] | None]:
    """What a reader of the file wants to know; None: what is not known."""
    source, imatrix = job.source, job.imatrix
    return {
        "general.file_type": _file_type(job.plan),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.license": source.licence,
        "general.license.name": source.terms.name,
        "general.license.link": source.terms.link,
        "general.languages": list(source.languages) or None,
        "general.source.huggingface.repository": source.base_model,
        "tierexport.recipe": job.recipe.name,
        "tierexport.rounding": next((row.rounding for row in job.plan.rows if row.rounding != "nearest"), "nearest"),
        "tierexport.source": source.base_model or source.name,
        "tierexport.source.revision": source.revision,
        "tierexport.source.digest": source.digest,
        "tierexport.max_tokens": source.max_tokens,
        "tierexport.prompt.query": prompt_for(source.prompts, "query") or None,
        "tierexport.prompt.document": prompt_for(source.prompts, "passage") or None,
        "tierexport.prompt.default": source.default_prompt or None,
        "tierexport.similarity": source.similarity,
        "tierexport.normalize": int(source.normalizes),
        "quantize.imatrix.file": "imatrix.gguf" if imatrix.means else None,
        "quantize.imatrix.dataset": imatrix.dataset or None,
        "quantize.imatrix.entries_count": len(imatrix.means) or None,
        "quantize.imatrix.chunks_count": imatrix.chunks or None,
    }
