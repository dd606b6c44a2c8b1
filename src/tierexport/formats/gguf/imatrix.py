"""llama.cpp's imatrix file, which `llama-quantize --imatrix` reads and `llama-imatrix` writes.

A GGUF with, per weight, `NAME.in_sum2` (F32 [columns, matrices]: sums of squared inputs) and
`NAME.counts` (F32 [1, matrices]: how many rows were summed); tools/imatrix in llama.cpp.
"""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np

from tierexport.base.errors import CalibrationError
from tierexport.base.records import Floats, Imatrix, Importance, Tensor
from tierexport.model.placement import linear_of
from tierexport.model.roles import UNQUANTIZED_ROLE, gguf_name
from tierexport.quantize.floor import floored

CHUNK_TOKENS = 512
"""llama-imatrix counts its texts in chunks of this many tokens, and the file has to name a size."""


def write_imatrix(importance: Importance, tensors: Iterable[Tensor], path: Path) -> None:
    """Write what was measured under the GGUF names of the tensors it was measured for.

    Raises CalibrationError for a matrix of a layer that no measurement belongs to.
    """
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()  # an imatrix has no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [importance.dataset])
    writer.add_uint32("imatrix.chunk_count", importance.texts)
    writer.add_uint32("imatrix.chunk_size", CHUNK_TOKENS)
    measured = {gguf_name(name): name for name in importance.sums}
    for tensor in sorted(tensors, key=lambda each: each.name):
        source = linear_of(tensor, measured)
        if source is None:
            if tensor.layer is None or tensor.role == UNQUANTIZED_ROLE:
                continue
            raise CalibrationError(f"no Linear of the model was seen to be {tensor.name}: give an imatrix made elsewhere")
        count = float(importance.counts[source])
        means = floored((importance.sums[source] / count).astype(np.float32))
        writer.add_tensor(f"{tensor.name}.in_sum2", (means * count).astype(np.float32).reshape(1, -1))
        writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """The means, as llama-quantize computes them: float32 sums over float32 counts.

    Raises CalibrationError when the file is not an imatrix in GGUF format.
    """
    if not path.is_file():
        raise CalibrationError(f"there is no imatrix file {path}")
    try:
        reader = gguf.GGUFReader(path)
        found = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, OSError, OverflowError) as error:
        raise CalibrationError(f"{path} is not a GGUF imatrix ({error}); llama-imatrix writes one with -o FILE.gguf") from None
    sums = {name.removesuffix(".in_sum2"): data for name, data in found.items() if name.endswith(".in_sum2")}
    kind = reader.get_field("general.type")
    if kind is None or kind.contents() != "imatrix" or not sums:
        raise CalibrationError(f"{path} is a GGUF but not an imatrix: its general.type is not 'imatrix'")
    if missing := [name for name in sums if f"{name}.counts" not in found]:
        raise CalibrationError(f"{path} has no {missing[0]}.counts: the imatrix is incomplete")
    datasets = reader.get_field("imatrix.datasets")
    chunks = reader.get_field("imatrix.chunk_count")
    try:
        means = {name: _means(data, found[f"{name}.counts"]) for name, data in sums.items()}
    except ValueError as error:
        raise CalibrationError(f"{path} has counts that don't fit its sums ({error}): the imatrix is damaged") from None
    return Imatrix(
        means=means,
        dataset=_last_part(str(datasets.contents()[0])) if datasets and datasets.contents() else path.name,
        chunks=int(chunks.contents()) if chunks else 0,
        path=path,
    )


def _last_part(name: str) -> str:
    """The name of a data set; llama-imatrix keeps the path that its texts had on somebody's disk."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if re.match(r"~?/|\.\.?/|[A-Za-z]:[/\\]", name) else name


def portable_bytes(path: Path) -> bytes:
    """An imatrix file as it is or, where it keeps the path of its texts, with their name alone."""
    reader = gguf.GGUFReader(path)
    field = reader.get_field("imatrix.datasets")
    names = [str(each) for each in field.contents()] if field else []
    if all(_last_part(each) == each for each in names):
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        writer = gguf.GGUFWriter(Path(scratch) / "imatrix.gguf", arch="")
        writer.kv_data[0].clear()
        for each in reader.fields.values():
            if not each.name.startswith("GGUF.") and each.name != "imatrix.datasets":
                kind = each.types[0]
                inner = each.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(each.name, each.contents(), kind, inner)
        writer.add_array("imatrix.datasets", [_last_part(each) for each in names])
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(scratch) / "imatrix.gguf").read_bytes()


def _means(sums: Floats, counts: Floats) -> Floats:
    per_matrix = sums.reshape(counts.size, -1)
    rows = counts.reshape(-1, 1).astype(np.float32)
    return np.where(rows > 0, per_matrix / np.maximum(rows, 1), np.float32(1)).astype(np.float32).reshape(-1)


def check_fits(imatrix: Imatrix, tensors: Iterable[Tensor]) -> None:
    """Refuse an imatrix of another model. Raises CalibrationError naming the tensor that differs.

    Entries that the model does not need, a pooler's or an output head's, are no reason to.
    """
    named = {tensor.name: tensor for tensor in tensors}
    for name, means in imatrix.means.items():
        if name not in named:
            continue
        experts = int(np.prod(named[name].shape[:-2]))
        if means.size != experts * named[name].shape[-1]:
            raise CalibrationError(
                f"{imatrix.path}: {name} has {means.size} columns, but {experts * named[name].shape[-1]} in this model: "
                "it is another model's"
            )
        if not np.isfinite(means).all() or (means < 0).any():
            raise CalibrationError(f"{imatrix.path}: {name} holds values that no sum of squares can have")
    matrices = [tensor.name for tensor in named.values() if tensor.layer is not None and tensor.role != UNQUANTIZED_ROLE]
    if missing := [name for name in matrices if name not in imatrix.means]:
        raise CalibrationError(f"{imatrix.path} has no entry for {missing[0]}: it is another model's, or incomplete")
