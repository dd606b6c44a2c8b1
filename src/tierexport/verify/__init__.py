"""Proof: artifacts against fp32, each opened by the program that its users will open it with."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tierexport.verify.kept import Judged, Reference
    from tierexport.verify.verifier import Material, read_material, verify

__all__ = ["Judged", "Material", "Reference", "read_material", "verify"]


def __getattr__(name: str) -> Any:
    """These names when they are asked for: the worker that runs llama.cpp starts without statistics and torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tierexport.verify import verifier

    return getattr(verifier, name)
