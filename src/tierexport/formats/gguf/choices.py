"""The types that a search chooses from for a GGUF."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from tierexport.base.records import Floats, Source, Tensor
from tierexport.formats.gguf import ggml
from tierexport.formats.gguf.types import INPUT_BLOCK, NATIVE_OF_BITS, WRITABLE, fits, takes_feedback, tensor_bytes
from tierexport.formats.gguf.write import Unquantized, file_bytes, padded
from tierexport.formats.job import Job
from tierexport.quantize.floor import floored
from tierexport.quantize.grids import GGUF_GRIDS, Grid


class GgufChoices:
    """All types that can be written; a GGUF has one layout."""

    settings: Mapping[str, Any] = MappingProxyType({})
    code: tuple[str, ...] = ("tierexport.formats.gguf.choices",)
    stock: tuple[str, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL")
    unit: str | None = "Q8_0"  # every model is offered in it
    exact: str | None = "F32"

    def types(self, tensor: Tensor) -> tuple[str, ...]:
        return tuple(native for native in WRITABLE if fits(tensor, native))

    def bits(self, native: str) -> int:
        known = {name: bits for bits, names in NATIVE_OF_BITS.items() for name in names}
        return known.get(native) or int(re.sub(r"\D*(\d+).*", r"\1", native))

    def stored_bytes(self, tensor: Tensor, native: str) -> int:
        return padded(tensor_bytes(tensor, native))

    def file_bytes(self, job: Job) -> int:
        """The size to the byte."""
        return file_bytes(job)

    def grid(self, tensor: Tensor, native: str) -> Grid | None:
        return GGUF_GRIDS[native] if takes_feedback(tensor, native) else None

    def nearest(self, values: Floats, native: str, importance: Floats | None) -> Floats:
        kind = gguf.GGMLQuantizationType[native]
        raw = np.concatenate(list(ggml.quantize(values, kind, None if importance is None else floored(importance))))
        found: Floats = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(values.shape)
        return found

    def input_block(self, native: str) -> int | None:
        return INPUT_BLOCK.get(native)

    def fp32(self, source: Source) -> Mapping[str, Floats]:
        return Unquantized(source)
