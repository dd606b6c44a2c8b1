"""Proof: artifacts against fp32, each opened by the program that its users will open it with."""
