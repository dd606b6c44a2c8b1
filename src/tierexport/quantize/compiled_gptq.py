"""gptq.py and descent.py on a CPU: blocks by compiled code, the products between blocks by BLAS, rows by one worker per core.

Rows don't depend on each other, so ROWS of them at a time are rounded on their own, whatever the number of workers. Within
PANEL columns each block's errors reach the others at once; all other columns get them panel by panel, in one product.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tierexport.base.records import Floats
from tierexport.base.workers import on_cores
from tierexport.quantize.codes import Codes
from tierexport.quantize.compiled import CompiledGrid, compiled_grid
from tierexport.quantize.compiled_blocks import descend, feed_back, super_scales
from tierexport.quantize.descent import SWEEPS
from tierexport.quantize.gptq import Request
from tierexport.quantize.grids import Affine
from tierexport.quantize.scales import factors

ROWS = 64
PANEL = 256


def compiled_gptq(requests: Sequence[Request]) -> list[Codes]:
    """The codes of matrices on a CPU, each onto its grid, by error feedback and then coordinate descent."""
    pieces = [(number, rows) for number, each in enumerate(requests) for rows in torch.split(each.weight, ROWS)]
    done = on_cores(lambda piece: _Rows(piece[1], requests[piece[0]]).codes(), pieces)
    by_request = [[codes for (of, _), codes in zip(pieces, done, strict=True) if of == each] for each in range(len(requests))]
    return [_joined(parts) for parts in by_request]


def _joined(parts: Sequence[Codes]) -> Codes:
    """The codes of a matrix from those of its rows."""
    shared = [each.super_scales for each in parts if each.super_scales is not None]
    levels, scales, offsets = (torch.cat([getattr(each, part) for each in parts]) for part in ("levels", "scales", "offsets"))
    return Codes(parts[0].grid, levels, scales, offsets, torch.cat(shared, 1) if shared else None)


class _Rows:
    """Some rows of a matrix on the way to their codes."""

    def __init__(self, weight: torch.Tensor, request: Request) -> None:
        rows, columns = weight.shape
        self._weight, self._curvature, self._grid = weight, request.curvature, request.grid
        self._compiled: CompiledGrid = compiled_grid(request.grid)
        self._factors: Floats = factors(request.grid).numpy()
        self._levels = torch.empty(rows, columns)
        self._affine = torch.empty(columns // request.grid.block, 2, rows)
        self._wide = request.grid.block * request.grid.super_block
        supers = columns // self._wide if request.grid.super_block > 1 else 0
        self._super_scales = torch.zeros(max(supers, 1), 2, rows)
        self._panel = self._wide * max(PANEL // self._wide, 1)

    def codes(self) -> Codes:
        """The codes after error feedback and coordinate descent."""
        self._feed_back()
        pull = self._pull()
        for _ in range(SWEEPS):
            self._descend(pull)
        grid = self._grid
        shared = self._super_scales.permute(1, 2, 0).contiguous() if grid.super_block > 1 else None
        scales, offsets = self._affine.permute(1, 2, 0).contiguous()
        return Codes(grid, self._levels.to(torch.int8), scales, offsets, shared)

    def _panels(self) -> list[slice]:
        columns = self._weight.shape[1]
        return [slice(start, min(start + self._panel, columns)) for start in range(0, columns, self._panel)]

    def _blocks(self, panel: slice) -> list[slice]:
        return [slice(start, start + self._grid.block) for start in range(panel.start, panel.stop, self._grid.block)]

    def _feed_back(self) -> None:
        left, feedback = self._weight.clone(), self._curvature.feedback
        for panel in self._panels():
            errors = torch.empty(len(left), panel.stop - panel.start)
            for here in self._blocks(panel):
                self._share(left, here)
                inside = slice(here.start - panel.start, here.stop - panel.start)
                errors[:, inside] = self._rounded(left[:, here], here)
                left[:, here.stop : panel.stop] -= errors[:, inside] @ feedback[here, here.stop : panel.stop]
            left[:, panel.stop :] -= errors @ feedback[panel, panel.stop :]

    def _share(self, left: torch.Tensor, here: slice) -> None:
        """Find a super-block's scales where it begins."""
        grid = self._grid
        if grid.super_block == 1 or here.start % self._wide:
            return
        wide = slice(here.start, here.start + self._wide)
        weights = (1 / self._curvature.feedback.diagonal()[wide].square()).numpy()
        scales, offsets = np.empty((2, len(left), grid.super_block), np.float32)
        super_scales(left[:, wide].numpy(), weights, grid.block, self._factors, self._compiled, scales, offsets)
        found = grid.super_scales(Affine(torch.from_numpy(scales), torch.from_numpy(offsets)))
        if found is not None:
            self._super_scales[here.start // self._wide] = found[..., 0]

    def _shared(self, here: slice) -> Floats:
        """The scales of the super-block that a block is in, (2, rows)."""
        number = here.start // self._wide if self._grid.super_block > 1 else 0
        found: Floats = self._super_scales[number].numpy()
        return found

    def _rounded(self, block: torch.Tensor, here: slice) -> torch.Tensor:
        """Round a block; its errors e, (rows, columns)."""
        levels, errors = np.empty((2, *block.shape), np.float32)
        feedback = self._curvature.feedback[here, here].T.contiguous().numpy()
        affine = self._affine[here.start // self._grid.block].numpy()
        feed_back(
            block.contiguous().numpy(), feedback, self._shared(here), self._factors, self._compiled, levels, affine, errors
        )
        self._levels[:, here] = torch.from_numpy(levels)
        return torch.from_numpy(errors)

    def _pull(self) -> torch.Tensor:
        """R H of the codes so far."""
        scales, offsets = (each.repeat_interleave(self._grid.block, 0).T for each in self._affine.unbind(1))
        return (self._weight - self._levels * scales - offsets) @ self._curvature.hessian

    def _descend(self, pull: torch.Tensor) -> None:
        """One round of coordinate descent; `pull`, R H, is kept up to date."""
        hessian = self._curvature.hessian
        for panel in self._panels():
            changes = torch.empty(len(pull), panel.stop - panel.start)
            for here in self._blocks(panel):
                inside = slice(here.start - panel.start, here.stop - panel.start)
                changes[:, inside] = self._improved(pull[:, here], here)
                pull[:, panel] -= changes[:, inside] @ hessian[here, panel]
            pull[:, : panel.start] -= changes @ hessian[panel, : panel.start]
            pull[:, panel.stop :] -= changes @ hessian[panel, panel.stop :]

    def _improved(self, pull: torch.Tensor, here: slice) -> torch.Tensor:
        """Improve a block; the change of its values, (rows, columns)."""
        levels, change = self._levels[:, here].contiguous().numpy(), np.empty(pull.shape, np.float32)
        hessian = self._curvature.hessian[here, here].contiguous().numpy()
        affine = self._affine[here.start // self._grid.block].numpy()
        descend(levels, affine, pull.contiguous().clone().numpy(), hessian, self._shared(here), self._compiled, change)
        self._levels[:, here] = torch.from_numpy(levels)
        return torch.from_numpy(change)
