"""GGUF: what a tier means on llama.cpp's grids, and how a file is converted, quantized, written.

Conversion is llama.cpp's own, in a process of its own; rounding is ggml's. What is decided here is
which tensor gets which type, and that nobody is surprised by it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tierexport import archive
from tierexport.calibrate import floored
from tierexport.encode import prompt_for
from tierexport.errors import ArtifactError, MachineError, PlanError
from tierexport.formats import ggml
from tierexport.formats.carried import OTHER_FORMAT, refuse_more_tokens_than_rows, refuse_what_is_lost
from tierexport.model_folder import module_kind, modules, transformer_folder, transformer_settings
from tierexport.records import Floats, FormatPlan, Imatrix, PlannedTensor, Recipe, Source, Tensor, Tier
from tierexport.roles import KEPT_ROLE, gguf_name, role_and_layer
from tierexport.rounding.gptq import Codes
from tierexport.rounding.grids import GGUF_GRIDS
from tierexport.rounding.layerwise import Rounded, Target
from tierexport.rounding.packing import pack
from tierexport.shipped import shipped
from tierexport.workdir import Stages, cache_dir, file_digest, stage_key, tells_of_full_disk

CONVERT_SECONDS = 3600

NATIVE_OF_BITS: Mapping[int, tuple[str, ...]] = {
    2: ("Q2_K",),
    3: ("Q3_K",),
    4: ("IQ4_NL",),
    5: ("Q5_K", "Q5_0"),
    6: ("Q6_K",),
    8: ("Q8_0",),
    16: ("F16",),
    32: ("F32",),
}
"""The types a tier may become, the first that fits. All K-quants need rows of 256 n columns."""

WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "F16", "F32")
"""Types a recipe may name."""

_FILE_TYPES = {"F32": "ALL_F32", **{f"Q{bits}_K": f"MOSTLY_Q{bits}_K_M" for bits in (3, 4, 5)}}
"""`general.file_type` (enum llama_ftype) of the type that most parameters have, where it is not MOSTLY_TYPE."""


@dataclass(frozen=True)
class Layout:
    """What the official converter makes of a model: its architecture and its tensors."""

    architecture: str
    tensors: tuple[Tensor, ...]


class GgufFormat:
    """llama.cpp's file format."""

    name = "gguf"

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        """What the converter would write. Raises PlanError when llama.cpp can't hold the model."""
        refuse_what_is_lost(source)
        refuse_more_tokens_than_rows(source)
        layout = read_layout(source)
        if _has_dense(source) and not any(tensor.name.startswith("dense_") for tensor in layout.tensors):
            raise PlanError(
                f"{source.name} has a Dense head after pooling, which llama.cpp drops for {layout.architecture}: "
                "the GGUF's vectors would be wrong. " + OTHER_FORMAT
            )
        return layout.tensors

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        """The type for a tensor, and a note where it is the recipe's fallback.

        Raises PlanError when neither the tier's type nor its fallback fits the shape.
        """
        named = tier.types.get(self.name)
        wanted = (named,) if named else NATIVE_OF_BITS[tier.bits]
        fallback = tier.fallback.get(self.name)
        for name in (*wanted, *([fallback] if fallback else [])):
            if name not in WRITABLE:
                raise PlanError(f"tiers.{tier.name}: {name!r} is no GGUF type that can be written: {', '.join(WRITABLE)}")
        for name in wanted:
            if fits(tensor, name):
                return name, ""
        if fallback and fits(tensor, fallback):
            return fallback, f"fallback: {wanted[0]} does not fit"
        raise PlanError(_misfit(tensor, tier, wanted[0]))

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        """Whether it is a matrix of a layer, and the type is one that codes are packed for."""
        return native in GGUF_GRIDS and tensor.layer is not None and tensor.role != KEPT_ROLE and len(tensor.shape) == 2

    def tensor_bytes(self, tensor: Tensor, native: str) -> int:
        """Rows times bytes per row."""
        columns = tensor.shape[-1]
        return tensor.parameters // columns * ggml.row_bytes(gguf.GGMLQuantizationType[native], columns)


def _has_dense(source: Source) -> bool:
    return any(module_kind(module) == "Dense" for module in modules(source.path))


def fits(tensor: Tensor, native: str) -> bool:
    """Whether a tensor's rows are whole blocks of a native type."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[native]]
    return bool(tensor.shape[-1] % block == 0)


def _misfit(tensor: Tensor, tier: Tier, native: str) -> str:
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[native]][0]
    fitting = [name for name in WRITABLE if fits(tensor, name)]
    return (
        f"{tensor.name} of shape {tensor.shape} can't take {native}: its blocks hold {block} values, and "
        f"{tensor.shape[-1]} columns are no multiple of that. Name a type that fits in tiers.{tier.name}.gguf "
        f"({', '.join(fitting)}), or allow one in tiers.{tier.name}.fallback.gguf"
    )


# --- conversion


def read_layout(source: Source) -> Layout:
    """The tensors that the converter would write, without writing them; remembered per model.

    Raises PlanError when llama.cpp does not know the architecture or refuses the model.
    """
    folder = source_stages(source).run("gguf-layout", _converter_key(), lambda out: _run_converter(source, out, None))
    found = json.loads((folder / "layout.json").read_text())
    return Layout(found["architecture"], tuple(_tensor(entry) for entry in found["tensors"]))


def _tensor(entry: dict[str, Any]) -> Tensor:
    shape = tuple(entry["shape"])
    role, layer = role_and_layer(entry["name"], shape)
    return Tensor(entry["name"], role, layer, shape, tuple(entry["sources"]))


def converted(source: Source) -> Path:
    """The unquantized fp32 GGUF of a model, converted at first use."""
    folder = source_stages(source).run("gguf-f32", _converter_key(), lambda out: _run_converter(source, out, "model.gguf"))
    return folder / "model.gguf"


def source_stages(source: Source) -> Stages:
    """The stages that every recipe for one model shares."""
    return Stages(cache_dir() / "models" / f"{source.name}-{source.digest[:16]}")


def _converter_key() -> str:
    driver = [file_digest(shipped("third_party") / name) for name in ("convert.py", "vocabulary.py")]
    return stage_key(archive.pin().sha256, driver)


def _run_converter(source: Source, out: Path, outfile: str | None) -> None:
    settings = transformer_settings(source.path)
    with tempfile.TemporaryDirectory() as scratch:
        request, log = Path(scratch) / "request.json", Path(scratch) / "log"
        job = {
            "converter": str(archive.converter()),
            "model": str(transformer_folder(source.path)),
            "name": source.name,
            "pooling": source.pooling,
            "dense": _has_dense(source),
            "lowercase": bool(settings.get("do_lower_case")),
            "tokenizer_arguments": settings.get("tokenizer_args") or settings.get("processor_kwargs") or {},
            "outfile": str(out / outfile) if outfile else None,
            "layout": str(out / "layout.json"),
        }
        request.write_text(json.dumps(job))
        command = [sys.executable, str(shipped("third_party") / "convert.py"), str(request)]
        with log.open("wb") as output:
            try:
                code = subprocess.run(command, stdout=output, stderr=output, timeout=CONVERT_SECONDS, check=False).returncode
            except subprocess.TimeoutExpired:
                raise MachineError(f"the converter took longer than {CONVERT_SECONDS} s for {source.name}") from None
        if code:
            raise _converter_error(source, log.read_text("utf-8", "replace"), code)


def _converter_error(source: Source, log: str, code: int) -> Exception:
    told = [line for line in log.splitlines() if line.strip() and not line.startswith("Writing:")]
    last = told[-1] if told else f"it ended with code {code}"
    if tells_of_full_disk(log):
        return MachineError(f"no space left while converting {source.name}: free some and run again")
    if code < 0:
        return MachineError(f"the converter was killed by signal {-code} on {source.name}: is there too little memory?")
    if "NotImplementedError" in log:
        return PlanError(f"llama.cpp can't hold {source.name} ({source.architecture}): {last}. {OTHER_FORMAT}")
    return PlanError(f"llama.cpp's converter refuses {source.name} ({source.architecture}): {last}. {OTHER_FORMAT}")


# --- writing


def targets(plan: FormatPlan, source: Source, imatrix: Imatrix) -> list[Target]:
    """The matrices of a plan as rounding layer by layer sees them."""
    data = {tensor.name: tensor.data for tensor in gguf.GGUFReader(converted(source)).tensors}

    def target(row: PlannedTensor) -> Target:
        def values() -> Floats:
            return np.array(data[row.tensor.name], np.float32).reshape(row.tensor.shape)

        def nearest() -> Floats:
            raw = _quantized(row, values(), imatrix, None)
            found: Floats = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[row.type]).astype(np.float32)
            return found.reshape(row.tensor.shape)

        return Target(row.tensor, values, nearest, GGUF_GRIDS[row.type] if row.rounding != "nearest" else None)

    crushed = (row for row in plan.rows if row.type != "F32" and row.tensor.role != KEPT_ROLE)
    return [target(row) for row in crushed if len(row.tensor.shape) == 2]


def tunable(plan: FormatPlan, source: Source, parameters: Mapping[str, Floats]) -> list[str]:
    """Which of a model's parameters the file keeps in fp32 as they are, biases and norms, by the parameters' names.

    A norm that the converter shifts (Gemma's) is not among them.
    """
    data = {tensor.name: tensor.data for tensor in gguf.GGUFReader(converted(source)).tensors}
    kept = {row.tensor.name for row in plan.rows if row.type == "F32" and len(row.tensor.shape) == 1}
    names = {name: gguf_name(name) for name in parameters}
    return [name for name, ours in names.items() if ours in kept and np.array_equal(data[ours], parameters[name])]


def write_gguf(
    plan: FormatPlan, recipe: Recipe, source: Source, imatrix: Imatrix, rounded: Rounded, path: Path,
    step: Callable[[int], None],
) -> None:  # fmt: skip
    """Quantize the converted model as planned and write it. `step` hears the parameters done.

    A tensor with codes is stored by them, a tuned one by its new values, the others are rounded by
    ggml. Raises PlanError when a value does not fit its type.
    """
    reader = gguf.GGUFReader(converted(source))
    data = {tensor.name: tensor.data for tensor in reader.tensors}
    writer = _begun(plan, recipe, source, imatrix, reader, path)
    data |= {str(gguf_name(name)): values for name, values in rounded.kept.items()}
    for row in plan.rows:
        writer.write_tensor_data(_quantized(row, data[row.tensor.name], imatrix, rounded.codes.get(row.tensor.name)))
        step(row.tensor.parameters)
    writer.close()


def file_bytes(plan: FormatPlan, recipe: Recipe, source: Source, imatrix: Imatrix) -> int:
    """The size to the byte of the file that `write_gguf` would write."""
    with tempfile.TemporaryDirectory() as scratch:
        header = Path(scratch) / "header.gguf"
        _begun(plan, recipe, source, imatrix, gguf.GGUFReader(converted(source)), header).close()
        return padded(header.stat().st_size) + sum(padded(row.bytes) for row in plan.rows)


def padded(size: int) -> int:
    """What `size` bytes take in a file, in which every tensor starts at a multiple of 32."""
    return int(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT))


def _begun(
    plan: FormatPlan, recipe: Recipe, source: Source, imatrix: Imatrix, fp32: gguf.GGUFReader, path: Path
) -> gguf.GGUFWriter:
    """A file with everything but the tensors' data."""
    writer = gguf.GGUFWriter(path, arch=fp32.get_field("general.architecture").contents())
    _copy_metadata(fp32, writer)
    _add_metadata(plan, recipe, source, imatrix, writer)
    for row in plan.rows:
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


def _add_metadata(plan: FormatPlan, recipe: Recipe, source: Source, imatrix: Imatrix, writer: gguf.GGUFWriter) -> None:
    """What a reader of the file wants to know; replaces what the converter said of the fp32 file."""
    by_type: dict[str, int] = {}
    for row in plan.rows:
        by_type[row.type] = by_type.get(row.type, 0) + row.tensor.parameters
    most = max(by_type, key=lambda name: by_type[name])
    file_type = gguf.LlamaFileType[_FILE_TYPES.get(most, f"MOSTLY_{most}")]
    values: dict[str, str | int | list[str] | None] = {
        "general.file_type": int(file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.license": source.licence,
        "general.license.name": source.terms.name,
        "general.license.link": source.terms.link,
        "general.languages": list(source.languages) or None,
        "general.source.huggingface.repository": source.base_model,
        "tierexport.recipe": recipe.name,
        "tierexport.rounding": next((row.rounding for row in plan.rows if row.rounding != "nearest"), "nearest"),
        "tierexport.source": source.base_model or source.name,
        "tierexport.source.revision": source.revision,
        "tierexport.source.digest": source.digest,
        "tierexport.max_tokens": source.max_tokens,
        "tierexport.prompt.query": prompt_for(source.prompts, "query") or None,
        "tierexport.prompt.document": prompt_for(source.prompts, "passage") or None,
        "tierexport.similarity": source.similarity,
        "tierexport.normalize": int(source.normalizes),
        "quantize.imatrix.file": "imatrix.gguf" if imatrix.means else None,
        "quantize.imatrix.dataset": imatrix.dataset or None,
        "quantize.imatrix.entries_count": len(imatrix.means) or None,
        "quantize.imatrix.chunks_count": imatrix.chunks or None,
    }
    for key, value in values.items():
        if value is None:
            continue
        for shard in writer.kv_data:
            shard.pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
            writer.add_key_value(key, value, kind)


# --- reading back


def read_tensors(path: Path) -> tuple[tuple[Tensor, str, int], ...]:
    """(tensor, native type, bytes) of every tensor in a GGUF file, anybody's.

    Raises ArtifactError when the file is damaged.
    """
    reader = open_gguf(path)
    found = []
    for entry in reader.tensors:
        shape = tuple(int(size) for size in reversed(entry.shape))
        role, layer = role_and_layer(entry.name, shape)
        found.append((Tensor(entry.name, role, layer, shape), entry.tensor_type.name, int(entry.n_bytes)))
    return tuple(found)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Gguf's own reader on a file. Raises ArtifactError when it can't be read."""
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise ArtifactError(f"{path} is not a GGUF file, or is damaged: {error}") from None
