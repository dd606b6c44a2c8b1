"""What is planned for one format: every tensor with its tier, native type, bytes and rounding; and the artifact made of it."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tierexport.base.records import Tensor, bits_per_parameter
from tierexport.model.roles import UNQUANTIZED_ROLE
from tierexport.recipe.schema import Tier


@dataclass(frozen=True)
class PlannedTensor:
    """One row of the plan: a tensor, its tier, the native type and bytes it gets, and how it is rounded to it."""

    tensor: Tensor
    tier: Tier
    type: str
    bytes: int
    rounding: str = "nearest"
    note: str = ""

    @property
    def quantized(self) -> bool:
        """Whether its tier has it quantized, and it is none that no format quantizes."""
        return self.tier.bits < 16 and self.tensor.role != UNQUANTIZED_ROLE

    def as_json(self) -> dict[str, Any]:
        """The row as `plan --json` and manifest.json show it."""
        return {
            **self.tensor.as_json(),
            "tier": self.tier.name,
            "type": self.type,
            "bytes": self.bytes,
            "rounding": self.rounding,
            "note": self.note,
        }


@dataclass(frozen=True)
class FormatPlan:
    """What one format will hold."""

    format: str
    rows: tuple[PlannedTensor, ...]

    def carried_out(self, nearest: Collection[str], tuned: bool) -> "FormatPlan":
        """The plan as it turned out: the tensors that error feedback gained nothing for, and whether tuning gained anything."""

        def done(row: PlannedTensor) -> PlannedTensor:
            if row.tensor.name in nearest:
                return replace(row, rounding="nearest", note="error feedback gained nothing")
            return replace(row, rounding="gptq") if row.rounding == "distill" and not tuned else row

        return replace(self, rows=tuple(map(done, self.rows)))

    @property
    def feeds_back(self) -> bool:
        """Whether anything is rounded with error feedback."""
        return self.fed_back > 0

    @property
    def fed_back(self) -> int:
        """How many tensors are rounded with error feedback."""
        return sum(row.rounding != "nearest" for row in self.rows)

    @property
    def to_nearest(self) -> int:
        """How many quantized tensors of layers are rounded to the nearest."""
        return sum(row.rounding == "nearest" and row.quantized and row.tensor.layer is not None for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.tensor.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors alone, without header and padding."""
        return sum(row.bytes for row in self.rows)

    @property
    def codes(self) -> int:
        """Bytes of what error feedback makes, which waits beside the artifact until that is written: one per value."""
        return sum(row.tensor.parameters for row in self.rows if row.rounding != "nearest")

    @property
    def nominal_bits(self) -> float:
        """Mean of the tiers' bits over all parameters."""
        return sum(row.tier.bits * row.tensor.parameters for row in self.rows) / max(self.parameters, 1)

    @property
    def tensor_bits(self) -> float:
        """Bits per parameter of the tensors alone."""
        return bits_per_parameter(self.bytes, self.parameters)

    def as_json(self) -> dict[str, Any]:
        """Totals and rows as `plan --json` shows them."""
        sizes = {"parameters": self.parameters, "tensor_bytes": self.bytes}
        bits = {"nominal_bits": self.nominal_bits, "tensor_bits": self.tensor_bits}
        rounding = {"fed_back": self.fed_back, "layer_tensors_to_nearest": self.to_nearest}
        return {"format": self.format, **sizes, **bits, **rounding, "tensors": [row.as_json() for row in self.rows]}


@dataclass(frozen=True)
class Artifact:
    """A written file or folder. `bytes` are those of its weight files on disk."""

    format: str
    path: Path
    bytes: int
    plan: FormatPlan

    @property
    def stored_bits(self) -> float:
        return bits_per_parameter(self.bytes, self.plan.parameters)
