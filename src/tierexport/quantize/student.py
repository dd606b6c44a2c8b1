"""A rounded model whose fp32 parameters and block scales can be tuned.

Scales are rounded to what can be stored, through which no gradient passes: it is taken as if they were not rounded, by the
straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from tierexport.base.workers import on_cores
from tierexport.quantize.codes import Codes
from tierexport.quantize.grids import Affine
from tierexport.quantize.targets import Rounded

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Features = Any
"""What sentence-transformers makes of a batch of texts."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each tensor beside its step."""


class Student:
    """A model that runs with `rounded` weights; `tunable` names its parameters that stay in fp32.

    What is tuned of a scale is its ratio to the scale in `rounded`.
    """

    def __init__(self, model: "SentenceTransformer", rounded: Rounded, tunable: Sequence[str]) -> None:
        self._model, self._rounded, self._device = model, rounded, model.device
        self._parameters = dict(model.transformers_model.named_parameters())
        self._unquantized = {name: self._parameters[name].detach().clone().requires_grad_() for name in tunable}
        own = {name: codes for name, codes in rounded.codes.items() if codes.super_scales is None and name in rounded.places}
        self._ratios = {
            name: torch.ones_like(codes.scales, device=self._device).requires_grad_() for name, codes in own.items()
        }
        self._optimizer = torch.optim.Adam([*self._unquantized.values(), *self._ratios.values()])

    def outputs(self, features: Features) -> Features:
        """What the model makes of a batch with the parameters that `put` gave it last."""
        return self._model(dict(features))

    def put(self) -> Mapping[str, torch.Tensor]:
        """Give the model its parameters as they are now; those that are tuned or have tuned scales, by name, as functions of
        what is tuned.
        """
        made = dict(self._made())
        for name, values in made.items():
            self._parameters[name].data = values.detach()
            self._parameters[name].requires_grad_()
        return made

    def learn(self, losses: Sequence[Callable[[], torch.Tensor]], rate: float) -> None:
        """One step of Adam on the sum of some parts of a loss, each computed by a worker, for the model's own parameters."""
        made = self.put()
        own = [self._parameters[name] for name in made]
        found = on_cores(lambda loss: torch.autograd.grad(loss(), own, allow_unused=True), losses)
        parts = zip(made, zip(*found, strict=True), strict=True)
        gradients = {name: sum(each) for name, each in parts if each[0] is not None}  # None: a pooler that no vector comes from
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad()
        torch.autograd.backward([made[name] for name in gradients], list(gradients.values()))
        self._optimizer.step()

    def rounded(self) -> Rounded:
        """Codes with the scales as they are now, and the fp32 parameters."""
        with torch.no_grad():
            scaled = {name: self._scaled(name) for name in self._ratios}
        codes = {
            name: Codes(each.grid, self._rounded.codes[name].levels, each.scales.cpu(), each.offsets.cpu(), None)
            for name, each in scaled.items()
        }
        tuned = {name: values.detach().cpu().numpy().copy() for name, values in self._unquantized.items()}
        return Rounded({**self._rounded.codes, **codes}, self._rounded.places, tuned, tuned=True)

    def save(self, path: Path) -> None:
        """Everything that the next step depends on."""
        parts = {}
        for name, tensor in self._tuned():
            parts[f"value/{name}"] = tensor.detach()
            for part, moment in self._optimizer.state[tensor].items():
                parts[f"{part}/{name}"] = moment
        save_file({name: each.contiguous() for name, each in parts.items()}, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        parts = load_file(path)
        for name, tensor in self._tuned():
            tensor.data.copy_(parts[f"value/{name}"])
            if f"step/{name}" not in parts:
                continue  # no text has reached it: a pooler that no vector comes from
            moments = {part: parts[f"{part}/{name}"].to(self._device) for part in MOMENTS}
            self._optimizer.state[tensor] = {"step": parts[f"step/{name}"].to("cpu"), **moments}

    def _tuned(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that is tuned, by a name of its own."""
        yield from self._unquantized.items()
        yield from ((f"{name}/scales", ratio) for name, ratio in self._ratios.items())

    def _made(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tuned parameter, and every weight whose scales are tuned, by name."""
        yield from self._unquantized.items()
        weights: dict[str, torch.Tensor] = {}
        for name in self._ratios:
            values = self._scaled(name).values()
            for place in self._rounded.places[name]:
                weight = weights.get(place.parameter, self._parameters[place.parameter].detach())
                weights[place.parameter] = place.put(weight, values)
        yield from weights.items()

    def _scaled(self, name: str) -> Codes:
        """A tensor's codes with its scales tuned; gradients pass their rounding by the straight-through estimator."""
        codes, ratio = self._rounded.codes[name], self._ratios[name]
        scales = codes.scales.to(self._device) * ratio
        offsets = codes.offsets.to(self._device)
        if codes.grid.integer_offset:
            offsets = offsets * ratio
        stored = codes.grid.storable(Affine(scales.detach(), offsets.detach()), None)
        scales = scales + (stored.scale - scales).detach()
        offsets = offsets + (stored.offset - offsets).detach()
        return Codes(codes.grid, codes.levels.to(self._device), scales, offsets, None)
