"""Codes as a safetensors file, so that what took long to find survives a kill."""

from collections.abc import Mapping
from pathlib import Path

from tierexport.quantize.gptq import Codes
from tierexport.quantize.grids import Grid

PARTS = ("levels", "scales", "offsets", "frames")


def write_codes(codes: Mapping[str, Codes], path: Path) -> None:
    """Write the codes of some tensors, by name."""
    import torch
    from safetensors.torch import save_file

    parts: dict[str, torch.Tensor] = {}
    for name, each in codes.items():
        for part in PARTS:
            values = getattr(each, part)
            if values is not None:
                parts[f"{name}/{part}"] = values.contiguous()
    save_file(parts, path)


def read_codes(path: Path, grids: Mapping[str, Grid]) -> dict[str, Codes]:
    """What `write_codes` wrote; `grids` names the grid of each tensor."""
    from safetensors.torch import load_file

    parts = load_file(path)
    names = dict.fromkeys(key.rpartition("/")[0] for key in parts)
    return {
        name: Codes(
            grids[name],
            parts[f"{name}/levels"],
            parts[f"{name}/scales"],
            parts[f"{name}/offsets"],
            parts.get(f"{name}/frames"),
        )
        for name in names
    }
