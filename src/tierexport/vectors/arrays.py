"""Vectors and codes as users have them, numpy arrays, torch tensors or lists, as the arrays that codecs count in.

torch is not imported: what has a tensor's methods is one.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats

Vectors: TypeAlias = Any
"""float16, bfloat16, float32 or float64 in a numpy array, a torch tensor on any device, or lists of numbers or of these."""

Codes: TypeAlias = Any
"""uint8 in a numpy array or a torch tensor."""

Bytes = npt.NDArray[np.uint8]

LARGE = np.float32(1e30)
"""The value that infinity is replaced by, so that a rotation does not make NaN of it."""


def as_floats(vectors: Vectors) -> Floats:
    """Vectors as a float32 array of the same shape, the array itself where it is one.

    Raises VectorError for what holds no floating point numbers: whole numbers are codes, or a mistake.
    """
    found = _array(vectors, "vectors", lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
    if found.dtype.kind != "f":
        raise VectorError(f"vectors of type {found.dtype}: floating point numbers are taken, and codes have Codec.decode")
    with np.errstate(over="ignore"):  # infinity is far, as in every codec
        floats: Floats = found.astype(np.float32, copy=False)
        return floats


def as_codes(codes: Codes) -> Any:
    """Codes as an array, of whatever type: `check_codes` refuses what is not uint8. Raises VectorError for what makes none."""
    return _array(codes, "codes", lambda tensor: tensor)


def plain(array: Any) -> Any:
    """The array, or a copy of it, as compiled code takes it: contiguous, writable, of no subclass; each other kind would be
    compiled for anew.
    """
    return np.require(array, requirements=["C", "W", "E"])


def _array(given: Any, name: str, plain: Callable[[Any], Any]) -> Any:
    """What a user gave as an array; `plain`: what is done to a tensor first, for numpy knows no bfloat16."""

    def held(each: Any) -> Any:
        return plain(each.detach()).cpu().numpy() if hasattr(each, "detach") else each

    try:
        return np.asarray([held(each) for each in given] if isinstance(given, list | tuple) else held(given))
    except (TypeError, ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise VectorError(f"{name} of type {type(given).__name__} make no array of numbers: {why}") from None
