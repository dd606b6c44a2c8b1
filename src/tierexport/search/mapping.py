"""Maps a model's layers: what each does, and what rounding it alone costs."""

import itertools
from dataclasses import dataclass

from tierexport.base.progress import stage
from tierexport.base.workers import HERE, Workers
from tierexport.model.encoder import open_model
from tierexport.search.layer_map import CAUSAL_BITS, LayerSensitivity, ModelMap, draw_map, layer_sensitivity
from tierexport.search.layers import read_layers
from tierexport.search.study import Study


def map_model(model: str, workers: Workers = HERE) -> ModelMap:
    """Map a model over the built-in texts. Raises InputError or MachineError."""
    study = Study(model)
    with stage("Reading the layers"):
        readings = read_layers(open_model(study.source), study.texts)
    with stage("Rounding one layer at a time") as running:
        running.total(len(readings) * len(CAUSAL_BITS))
        each = itertools.product(range(len(readings)), CAUSAL_BITS)
        sensitivities = workers.map(_Rounding(study), each, running.step)
    return draw_map(study.source.name, len(study.texts), readings, sensitivities)


@dataclass(frozen=True)
class _Rounding:
    """The work of rounding one layer alone, to so many bits."""

    study: Study

    def __call__(self, which: tuple[int, int]) -> LayerSensitivity:
        layer, bits = which
        tensors = [tensor for group in self.study.groups if group.layer == layer for tensor in group.tensors]
        return layer_sensitivity(self.study.trial, layer, tensors, bits)
