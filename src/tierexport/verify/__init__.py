"""Proof: artifacts against fp32, each opened by the program that its users will open it with."""

from tierexport.verify.verifier import Judged, Material, Reference, read_material, verify

__all__ = ["Judged", "Material", "Reference", "read_material", "verify"]
