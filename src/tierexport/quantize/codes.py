"""A rounded matrix as levels, scales and offsets; and codes as a safetensors file, so that a killed run can go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tierexport.quantize.grids import Grid

if TYPE_CHECKING:
    import torch

PARTS = ("levels", "scales", "offsets", "super_scales")


@dataclass(frozen=True)
class Codes:
    """A rounded matrix: levels (rows, columns), int8 once they are final; float32 scales and offsets (rows, blocks);
    and the super-blocks' scales of scales and of offsets, float32 (2, rows, super-blocks), or None where there are none.
    """

    grid: Grid
    levels: "torch.Tensor"
    scales: "torch.Tensor"
    offsets: "torch.Tensor"
    super_scales: "torch.Tensor | None"

    def values(self) -> "torch.Tensor":
        """The float32 (rows, columns) matrix that a reader of the format will see."""
        rows, columns = self.levels.shape
        blocks = self.levels.float().reshape(rows, -1, self.grid.block)
        return (blocks * self.scales[..., None] + self.offsets[..., None]).reshape(rows, columns)


def write_codes(codes: Mapping[str, Codes], path: Path) -> None:
    """Write the codes of some tensors, by name."""
    from safetensors.torch import save_file

    parts = {f"{name}/{part}": getattr(each, part) for name, each in codes.items() for part in PARTS}
    save_file({name: values.contiguous() for name, values in parts.items() if values is not None}, path)


def read_codes(path: Path, grids: Mapping[str, Grid]) -> dict[str, Codes]:
    """What `write_codes` wrote; `grids` names the grid of each tensor."""
    from safetensors.torch import load_file

    parts = load_file(path)
    names = dict.fromkeys(key.rpartition("/")[0] for key in parts)
    return {
        name: Codes(
            grids[name],
            levels=parts[f"{name}/levels"],
            scales=parts[f"{name}/scales"],
            offsets=parts[f"{name}/offsets"],
            super_scales=parts.get(f"{name}/super_scales"),
        )
        for name in names
    }
