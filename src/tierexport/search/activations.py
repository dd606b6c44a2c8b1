"""What llama.cpp multiplies a quantized matrix with: its inputs, rounded to 8 bits by blocks.

Where little is lost by weights, most of a file's loss is this, so a trial that left it out would choose by the lesser part.
"""

from collections.abc import Callable
from typing import Any

import torch


def rounded_inputs(inputs: torch.Tensor, block: int) -> torch.Tensor:
    """Inputs, float32 (…, columns), as they are multiplied: the largest of a block becomes 127; Q8_0's scales are fp16."""
    blocks = inputs.reshape(*inputs.shape[:-1], -1, block)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.round(blocks / scales.clamp_min(torch.finfo().tiny))
    rounded: torch.Tensor = codes * (scales.half().float() if block == 32 else scales)
    return rounded.flatten(-2)


Hook = Callable[[torch.nn.Linear, tuple[Any, ...], torch.Tensor], torch.Tensor]


def rounding_hook(block: int, rows: torch.Tensor) -> Hook:
    """A forward hook of a Linear that multiplies these of its rows, int64 (rows,), with rounded inputs."""

    def multiply(linear: torch.nn.Linear, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        change = rounded_inputs(inputs[0], block) - inputs[0]
        return output.index_add(-1, rows, torch.nn.functional.linear(change, linear.weight[rows]))

    return multiply
