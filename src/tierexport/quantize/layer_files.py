"""The layers of a model, in memory or in files of their own, so that only those are in memory that passes go through."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tierexport.base.files import writing


class Layers:
    """The layers of a model, all of them in memory from beginning to end."""

    def load(self, number: int) -> None:
        """Have a layer's parameters in memory, as they were at first; there may be no such layer."""

    def drop(self, number: int) -> None:
        """Let go of a layer's parameters, which nothing needs any more."""


class LayerFiles(Layers):
    """The parameters of each layer, fp32 on the CPU, in `folder`; the rest of the model stays in memory.

    A model that was opened is mapped from its files as a whole, and what was read of a mapped file counts as the process's
    until nothing is left that refers to it. Parameters that several layers share stay in memory.
    """

    def __init__(self, model: torch.nn.Module, layers: Sequence[torch.nn.Module], folder: Path) -> None:
        """Empty the layers. Raises MachineError when the disk is full."""
        holders = Counter(id(each) for layer in layers for each in layer.parameters())
        self._folder = folder
        self._layers = [{name: each for name, each in layer.named_parameters() if holders[id(each)] == 1} for layer in layers]
        for number, parameters in enumerate(self._layers):
            with writing(folder):
                save_file({name: each.data.contiguous() for name, each in parameters.items()}, self._path(number))
            self.drop(number)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()

    def load(self, number: int) -> None:
        if number < len(self._layers):
            for name, values in load_file(self._path(number)).items():
                self._layers[number][name].data = values

    def drop(self, number: int) -> None:
        for parameter in self._layers[number].values():
            parameter.data = parameter.data.new_empty(0)

    def _path(self, number: int) -> Path:
        return self._folder / f"layer-{number}.safetensors"
