"""Where a stored tensor lies in the running model.

By names: which parameters a tensor is made of, and which Linear gets the input that it is multiplied with. That takes no
values, so it holds for tables of experts, for tensors that a converter changes, and before anything has been converted.
By rows: which row of which parameter each row of a tensor is. That takes fp32 values, and holds for what a converter fuses,
splits or permutes, where names would say too little for values to be put back.
torchao stores the running model's own parameters under their own names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tierexport.base.records import Floats, Tensor
from tierexport.model.roles import gguf_name

if TYPE_CHECKING:
    import torch

_SAME_INPUT = {"attn_qkv": "attn_q", "attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv", "ffn_gate": "ffn_up"}
"""Matrices that a module tree may hold fused where the file has them apart, or the other way round."""


# --- by names


def parameters_of(tensors: Iterable[Tensor], names: Iterable[str]) -> dict[str, list[str]]:
    """Which of a model's parameters each tensor is made of, none where no name fits; by the tensor's name.

    By its own name or GGUF's table of names, or else by the checkpoint's names of what the tensor is made of.
    """
    names = list(names)
    known = {gguf_name(name): name for name in names} | {name: name for name in names}
    return {
        tensor.name: [known[tensor.name]]
        if tensor.name in known
        else [name for name in names if any(_same(name, source) for source in tensor.sources)]
        for tensor in tensors
    }


def _same(name: str, source: str) -> bool:
    """Whether a parameter's name is a checkpoint's, which may carry a prefix more, or one less."""
    return name == source or name.endswith(f".{source}") or source.endswith(f".{name}")


def linear_of(tensor: Tensor, by_gguf_name: Mapping[str | None, str]) -> str | None:
    """The Linear whose input is that of a GGUF tensor, among those named; None where there is none.

    `by_gguf_name`: Linears' weights by `gguf_name`. A checkpoint's names are no help here: transformers renames some when it
    loads them. A matrix that the model holds fused with others has their input.
    """
    base = tensor.name.removesuffix(".weight").rpartition(".")[2]
    fused = tensor.name.replace(base, _SAME_INPUT.get(base, base))
    return by_gguf_name.get(tensor.name) or by_gguf_name.get(fused)


# --- by rows


@dataclass(frozen=True)
class RowPlacement:
    """Rows of a tensor, and the rows `into` of a parameter that hold the same values, in the same order."""

    rows: Sequence[int]
    parameter: str
    into: Sequence[int]

    def put(self, weight: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
        """The parameter with the tensor's rows in it: a copy of `weight`, (rows of the parameter, columns)."""
        import torch

        return weight.index_copy(0, torch.tensor(self.into, device=weight.device), values[self.rows])


def row_placements(values: Floats, weights: "Mapping[str, torch.Tensor]") -> list[RowPlacement]:
    """Where in these fp32 weights, (rows, columns) each, the rows of a tensor lie, float32 (rows, columns).

    A converter fuses matrices, splits them, and puts their rows in another order, but leaves rows whole. Rows that are in
    none of the weights are in no placement.
    """
    numbers = {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(values))}
    found = []
    for name, weight in weights.items():
        matrix = weight.numpy()
        if matrix.shape[-1] != values.shape[-1]:
            continue
        pairs = [(numbers[key], into) for into, row in enumerate(matrix) if (key := row.tobytes()) in numbers]
        if pairs:
            found.append(RowPlacement([row for row, _ in pairs], name, [into for _, into in pairs]))
    return found
