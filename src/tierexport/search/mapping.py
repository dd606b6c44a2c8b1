"""Maps a model's layers: what each does, and what rounding it alone costs."""

import itertools

from tierexport.base.progress import stage
from tierexport.model.encoder import open_model
from tierexport.search.layer_map import CAUSAL_BITS, ModelMap, draw_map, layer_sensitivity
from tierexport.search.layers import read_layers
from tierexport.search.study import Study


def map_model(model: str) -> ModelMap:
    """Map a model over the built-in texts. Raises InputError or MachineError."""
    study = Study(model)
    with stage("Reading the layers"):
        readings = read_layers(open_model(study.source), study.texts)
    trial = study.trial
    with stage("Rounding one layer at a time") as running:
        running.total(len(readings) * len(CAUSAL_BITS))
        sensitivities = []
        for layer, bits in itertools.product(range(len(readings)), CAUSAL_BITS):
            tensors = [tensor for group in study.groups if group.layer == layer for tensor in group.tensors]
            sensitivities.append(layer_sensitivity(trial, layer, tensors, bits))
            running.step()
    return draw_map(study.source.name, len(study.texts), readings, sensitivities)
