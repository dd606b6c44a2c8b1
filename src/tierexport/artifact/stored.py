"""A tensor as an artifact stores it, and what the name of its native type says."""

import re
from dataclasses import dataclass
from typing import Any

from tierexport.base.records import Tensor

UNQUANTIZED_TYPES = frozenset({"f16", "f32", "bf16", "float16", "float32", "bfloat16"})
"""Native types of 16 bits or more in which weights are not quantized, in lower case, as formats spell them."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor, the native type that it is stored in, and the bytes that it takes, scales included."""

    tensor: Tensor
    type: str
    bytes: int

    @property
    def unquantized(self) -> bool:
        """Whether its type is one of UNQUANTIZED_TYPES."""
        return is_unquantized(self.type)

    def as_json(self) -> dict[str, Any]:
        """As `inspect --json` prints it."""
        return {**self.tensor.as_json(), "type": self.type, "bytes": self.bytes}


def is_unquantized(native: str) -> bool:
    """Whether a native type is one of UNQUANTIZED_TYPES."""
    return native.lower() in UNQUANTIZED_TYPES


def nominal_bits(native: str) -> int:
    """The bits in the name of a native type, IQ4_NL, Q8_0, int4, BF16, F8_E4M3: its first number, and 8 where it has none."""
    found = re.search(r"\d+", native)
    return int(found[0]) if found else 8
