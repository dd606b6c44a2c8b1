"""Proof: artifacts against fp32, each opened by the program that its users will open it with."""

from tierexport.verify.kept import Judged, Reference
from tierexport.verify.verifier import Material, read_material, verify

__all__ = ["Judged", "Material", "Reference", "read_material", "verify"]
