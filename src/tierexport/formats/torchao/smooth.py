"""Evens out the inputs of a Linear, so that rounding them to int8 loses less: x · Wᵀ = (x / s) · (W · s)ᵀ, s per column.

The factors are SmoothQuant's (arXiv 2211.10438); how far they go, if anywhere, each matrix says by what it loses on texts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tierexport.base.records import Text
from tierexport.formats.torchao.convert import config_of, quantize
from tierexport.formats.torchao.types import DYNAMIC
from tierexport.model.batches import batches, prompted, real_rows
from tierexport.recipe.schema import TorchaoSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROWS = 512
"""Inputs of each Linear that are kept, at even distances."""

EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""How much of the spread of the inputs may go into the weights."""


def inputs_of(model: "SentenceTransformer", texts: Sequence[Text], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Inputs of the Linears with these names, float32 (about ROWS, columns), taken evenly from texts, padding left out."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    every = list(batches(model, prompted(model.prompts, texts)))
    apart = max(sum(int(batch.mask.sum()) for batch in every) // ROWS, 1)
    mask = torch.empty(0)

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            found[name].append(real_rows(inputs[0], mask)[::apart].clone())

        return hook

    handles = [model.transformers_model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    with torch.inference_mode():
        for batch in every:
            mask = batch.mask
            model(dict(batch.features))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) if rows else _unread(model, name) for name, rows in found.items()}


def _unread(model: "SentenceTransformer", name: str) -> torch.Tensor:
    """Zeros (1, columns), for a Linear that no text came to."""
    return torch.zeros(1, model.transformers_model.get_submodule(name).weight.shape[1])


@torch.no_grad()
def store_smoothed(module: Any, inputs: torch.Tensor, settings: TorchaoSettings) -> None:
    """Round a Linear's weight for products of integers, with the factors that lose least on `inputs` (rows, columns)."""
    exact = torch.nn.functional.linear(inputs, module.weight)
    factors = [torch.ones(inputs.shape[1]), *(_factors(inputs, module.weight, exponent) for exponent in EXPONENTS)]
    tried = [_rounded(module.weight, each, settings) for each in factors]
    losses = [float((torch.nn.functional.linear(inputs, each) - exact).square().sum()) for each in tried]
    module.weight = torch.nn.Parameter(tried[losses.index(min(losses))], requires_grad=False)


def _factors(inputs: torch.Tensor, weight: torch.Tensor, exponent: float) -> torch.Tensor:
    """Float32 (columns,): inputs by their largest values, which decide a step, weights by their root mean square."""
    largest, weights = inputs.abs().amax(0).clamp(min=1e-5), weight.square().mean(0).sqrt().clamp(min=1e-5)
    return largest**exponent / weights ** (1 - exponent)


def _rounded(weight: torch.Tensor, factors: torch.Tensor, settings: TorchaoSettings) -> Any:
    """Torchao's tensor of the weight times `factors`, which divides its inputs by them."""
    rows, columns = weight.shape
    alone: Any = torch.nn.Linear(columns, rows, bias=False)
    alone.weight = torch.nn.Parameter(weight.detach() * factors, requires_grad=False)
    quantize(alone, DYNAMIC, config_of(DYNAMIC, settings), settings)
    alone.weight.act_pre_scale = 1 / factors
    return alone.weight.data
