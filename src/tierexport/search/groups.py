"""What gets one type together: the tensors of one role in one layer; and what each type takes of the file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierexport.base.records import Tensor
from tierexport.formats.choices import Choices
from tierexport.model.roles import UNQUANTIZED_ROLE


@dataclass(frozen=True)
class Group:
    """Tensors of one role in one layer (None: outside the layers), for most models a single matrix.

    `bytes`: what they take in the file at each native type that all of them can take.
    """

    role: str
    layer: int | None
    tensors: tuple[Tensor, ...]
    bytes: Mapping[str, int]

    @property
    def name(self) -> str:
        return self.role if self.layer is None else f"layer {self.layer} {self.role}"

    @property
    def smallest(self) -> str:
        """The type that takes the least bytes."""
        return min(self.bytes, key=lambda native: self.bytes[native])


def groups_of(tensors: Sequence[Tensor], choices: Choices) -> tuple[Group, ...]:
    """The groups of a model's tensors, in the order in which they are stored; unquantized tensors are in none."""
    found: dict[tuple[str, int | None], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.role != UNQUANTIZED_ROLE:
            found.setdefault((tensor.role, tensor.layer), []).append(tensor)
    return tuple(Group(role, layer, tuple(each), _bytes(each, choices)) for (role, layer), each in found.items())


def _bytes(tensors: Sequence[Tensor], choices: Choices) -> dict[str, int]:
    common = [native for native in choices.types(tensors[0]) if all(native in choices.types(each) for each in tensors)]
    return {native: sum(choices.stored_bytes(tensor, native) for tensor in tensors) for native in common}
