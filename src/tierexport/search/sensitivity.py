"""What each group of tensors costs at each native type: bytes, and the pooled vector's sensitivity to it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tierexport.base.digests import value_digest
from tierexport.base.records import Tensor
from tierexport.base.stages import Stages
from tierexport.formats.gguf.types import WRITABLE, fits, tensor_bytes
from tierexport.formats.gguf.write import padded
from tierexport.model.roles import GROUPS, UNQUANTIZED_ROLE
from tierexport.search.trial import TrialModel

PARTS: Mapping[str, tuple[str, ...]] = {
    "embeddings": GROUPS["embeddings"],
    "attention": GROUPS["attention"],
    "ffn_up": ("ffn_up", "ffn_gate"),
    "ffn_down": ("ffn_down",),
    "heads": GROUPS["heads"],
    "other": ("other",),
}
"""What is rounded together: roles that do one thing. Each layer has its own."""


@dataclass(frozen=True)
class Group:
    """Tensors of one part of one layer (None: outside the layers)."""

    part: str
    layer: int | None
    tensors: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return self.part if self.layer is None else f"layer {self.layer} {self.part}"


@dataclass(frozen=True)
class Option:
    """A native type for a group: its bytes in the file, and the mean 1 − cosine that it alone causes."""

    native: str
    bytes: int
    sensitivity: float


Options = Mapping[str, tuple[Option, ...]]
"""Every option of every group, by the group's name."""


def groups_of(tensors: Sequence[Tensor]) -> tuple[Group, ...]:
    """The groups of a model's tensors, in the order in which they act; unquantized tensors are in none."""
    part_of = {role: part for part, roles in PARTS.items() for role in roles}
    found: dict[tuple[str, int | None], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.role != UNQUANTIZED_ROLE:
            found.setdefault((part_of[tensor.role], tensor.layer), []).append(tensor)
    return tuple(Group(part, layer, tuple(each)) for (part, layer), each in found.items())


def types_of(group: Group) -> tuple[str, ...]:
    """The native types that every tensor of a group can take."""
    return tuple(native for native in WRITABLE if all(fits(tensor, native) for tensor in group.tensors))


def group_bytes(group: Group, native: str) -> int:
    """Bytes of a group in the file, padding included."""
    return sum(padded(tensor_bytes(tensor, native)) for tensor in group.tensors)


def measure(
    groups: Sequence[Group],
    trial: Callable[[], TrialModel],
    stages: Stages,
    key: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Options:
    """Round one group at a time to each of its types. Each group is kept in `stages` once it is done.

    `trial`: called when something has to be measured. `progress`: called with the number of types done since the last call.
    """

    def write(group: Group) -> Callable[[Path], None]:
        return lambda folder: _write(folder / "options.json", [option(group, native) for native in types_of(group)])

    def option(group: Group, native: str) -> Option:
        found = _option(group, native, trial)
        progress(1)
        return found

    found = {}
    for group in groups:
        folder = stages.run(f"sensitivity-{value_digest([key, group.name])[:16]}", key, write(group))
        found[group.name] = _read(folder / "options.json")
    return found


def _option(group: Group, native: str, trial: Callable[[], TrialModel]) -> Option:
    """A group at a type: its bytes, and the sensitivity measured on the trial model; unrounded, nothing changes."""
    if native == "F32":
        return Option(native, group_bytes(group, native), 0.0)
    measured = trial().sensitivity({tensor.name: native for tensor in group.tensors}).mean()
    return Option(native, group_bytes(group, native), max(float(measured), 0.0))


def _write(path: Path, options: Sequence[Option]) -> None:
    path.write_text(json.dumps([asdict(each) for each in options]))


def _read(path: Path) -> tuple[Option, ...]:
    return tuple(Option(**each) for each in json.loads(path.read_text()))
