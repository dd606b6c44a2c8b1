"""What gets one type together: the tensors of one role in one layer; and what each type takes of the file."""

from collections.abc import Sequence
from dataclasses import dataclass

from tierexport.base.records import Tensor
from tierexport.formats.gguf.types import WRITABLE, fits, tensor_bytes
from tierexport.formats.gguf.write import padded
from tierexport.model.roles import UNQUANTIZED_ROLE


@dataclass(frozen=True)
class Group:
    """Tensors of one role in one layer (None: outside the layers), for most models a single matrix."""

    role: str
    layer: int | None
    tensors: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return self.role if self.layer is None else f"layer {self.layer} {self.role}"


def groups_of(tensors: Sequence[Tensor]) -> tuple[Group, ...]:
    """The groups of a model's tensors, in the order in which they are stored; unquantized tensors are in none."""
    found: dict[tuple[str, int | None], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.role != UNQUANTIZED_ROLE:
            found.setdefault((tensor.role, tensor.layer), []).append(tensor)
    return tuple(Group(role, layer, tuple(each)) for (role, layer), each in found.items())


def types_of(group: Group) -> tuple[str, ...]:
    """The native types that every tensor of a group can take."""
    return tuple(native for native in WRITABLE if all(fits(tensor, native) for tensor in group.tensors))


def group_bytes(group: Group, native: str) -> int:
    """Bytes of a group in the file, padding included."""
    return sum(padded(tensor_bytes(tensor, native)) for tensor in group.tensors)
