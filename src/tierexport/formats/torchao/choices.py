"""The types that a search chooses from for a torchao folder."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tierexport.base.records import Floats, Source, Tensor
from tierexport.formats.job import Job
from tierexport.formats.torchao.types import NATIVE_OF_BITS, misfit, takes_feedback, tensor_bytes
from tierexport.model.roles import UNQUANTIZED_ROLE
from tierexport.quantize.grids import Grid, int4_grid
from tierexport.recipe.schema import TorchaoSettings

ENTRY, PLAIN, DESCRIPTION = 120, 40, 400
"""Characters at most, beside names, that a safetensors header has for an array, and for what torchao says of a tensor that is
not quantized and of one that is.
"""

ARRAYS = 3
"""Of a quantized tensor: codes, scales and zero points."""


class TorchaoChoices:
    """The types of a layout that differ in bytes.

    Those of "fast" are not among them: they take the bytes of others and lose more, for speed.
    """

    code: tuple[str, ...] = ("tierexport.formats.torchao.choices",)
    stock: tuple[str, ...] = ()
    unit: str | None = None

    def __init__(self, layout: TorchaoSettings) -> None:
        self._layout, self._packed = layout, layout.layout == "packed"
        self.settings: Mapping[str, Any] = {"torchao": asdict(layout)}
        self.exact: str | None = None if self._packed else "float32"  # beside packed weights all others are bfloat16

    def types(self, tensor: Tensor) -> tuple[str, ...]:
        offered = ("int4", "int8", "float16") if self._packed else ("int8", "float16", "float32")
        return tuple(native for native in offered if misfit(tensor, native, self._layout) is None)

    def bits(self, native: str) -> int:
        return next(bits for bits, name in NATIVE_OF_BITS.items() if name == native)

    def stored_bytes(self, tensor: Tensor, native: str) -> int:
        return tensor_bytes(tensor, native, self._layout)

    def file_bytes(self, job: Job) -> int:
        """The most that it may take: how long its header is depends on the types."""
        return sum(row.bytes + self._described(row.tensor) for row in job.plan.rows)

    def _described(self, tensor: Tensor) -> int:
        """What a header says of a tensor, at most."""
        unquantized = tensor.role == UNQUANTIZED_ROLE
        arrays, words = (1, PLAIN) if unquantized else (ARRAYS, DESCRIPTION)
        return arrays * (len(tensor.name) + ENTRY) + len(tensor.name) + words

    def grid(self, tensor: Tensor, native: str) -> Grid | None:
        return int4_grid(self._layout.group_size, self._layout.layout) if takes_feedback(tensor, native) else None

    def nearest(self, values: Floats, native: str, importance: Floats | None) -> Floats:
        import torch

        from tierexport.formats.torchao.convert import nearest

        del importance  # torchao rounds every value alike
        if native == "float32":
            return values
        weight = torch.from_numpy(values)
        if native == "float16":  # infinite beyond its range
            rounded = weight.half().bfloat16() if self._packed else weight.half()
        else:
            rounded = nearest(weight, native, self._layout)
        found: Floats = rounded.float().numpy()
        return found

    def input_block(self, native: str) -> None:
        """None: weights alone are rounded."""

    def fp32(self, source: Source) -> Mapping[str, Floats]:
        """None is needed: names are those of the running model."""
        del source
        return {}
