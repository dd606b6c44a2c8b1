"""What a search needs to know of a format: which types its tensors may get, what each takes, and what it leaves of values."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tierexport.base.records import Floats, Source, Tensor
from tierexport.formats.job import Job

if TYPE_CHECKING:
    from tierexport.quantize.grids import Grid


class Choices(Protocol):
    """The native types that a search chooses from, in one layout of a format."""

    settings: Mapping[str, Any]
    """What a recipe says of the layout, by its keys."""

    code: tuple[str, ...]
    """Modules whose code decides what is measured."""

    stock: tuple[str, ...]
    """The types of llama-quantize that files are offered in, to compare with."""

    unit: str | None
    """The type whose file's time is 1; None where types are not timed."""

    exact: str | None
    """The type that changes no vector, None where there is none."""

    def types(self, tensor: Tensor) -> tuple[str, ...]:
        """Those that a tensor can take."""

    def bits(self, native: str) -> int:
        """The bits of a tier that a type stands for."""

    def stored_bytes(self, tensor: Tensor, native: str) -> int:
        """Bytes of a tensor in the file, padding included."""

    def file_bytes(self, job: Job) -> int:
        """Bytes of the whole of a job's weight files, or the most that they may take."""

    def grid(self, tensor: Tensor, native: str) -> "Grid | None":
        """What error feedback rounds a tensor to at a type; None where a build rounds it to nearest."""

    def nearest(self, values: Floats, native: str, importance: Floats | None) -> Floats:
        """What rounding to nearest leaves of a tensor, (rows, columns); `importance`: float32 (columns,)."""

    def input_block(self, native: str) -> int | None:
        """How many inputs share a scale, where they are rounded to 8 bits before a product; None where they are not."""

    def fp32(self, source: Source) -> Mapping[str, Floats]:
        """Tensors in fp32 as the format names them, where names alone don't say where they lie in the running model."""
