"""Proof: artifacts against fp32, each opened by the program that its users will open it with."""

from tierexport.verify.screen import screen_artifacts

__all__ = ["screen_artifacts"]
