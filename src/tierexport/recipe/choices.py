"""The values that keys of a recipe choose from. Imports nothing: the command line's help offers them, and has to be instant."""

BITS = (2, 3, 4, 5, 6, 8, 16, 32)
"""Bits per weight that a tier may have."""

ROUNDINGS = ("gptq", "distill", "nearest")
"""How weights may be rounded to their types."""

LAYOUTS = ("portable", "packed", "fast")
"""How torchao may store values: one per byte; 4-bit ones two per byte; one per byte, for products of integers."""

GROUP_SIZES = (32, 64, 128, 256)
"""How many of torchao's 4-bit values may share a scale."""

LEVELS = ("int8", "int4", "int3", "int2", "trinary", "binary")
"""How precisely a vector's dimension may be stored."""

SCALINGS = ("rolling", "minmax", "clip", "quantile", "lloyd")
"""How a codec's bounds may be chosen."""

WIDEST = 16
"""The largest expansion factor of stored vectors; binary then takes half of what fp32 does."""
