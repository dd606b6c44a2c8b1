"""The map of a model: what each layer does, beside the vectors' sensitivity to rounding it alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tierexport.base.errors import PlanError
from tierexport.base.records import Tensor
from tierexport.formats.gguf.types import NATIVE_OF_BITS, fits
from tierexport.metrics.similarity import neighbours_kept
from tierexport.search.layers import LayerReading, binding_layer
from tierexport.search.trial import TrialModel

CAUSAL_BITS = (4, 8)
READINGS = tuple(each.name for each in fields(LayerReading) if each.name != "layer")


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding one layer alone, at `bits`, does to the pooled vector.

    `loss`: mean of 1 − cosine to fp32; `top10_retention`: share of each text's ten nearest that stay.
    """

    layer: int
    bits: int
    loss: float
    top10_retention: float


@dataclass(frozen=True)
class ModelMap:
    """What each layer does, what rounding it costs, and how well the first predicts the second.

    `correlations`: Spearman over layers of each reading with the 4-bit loss; None where there are
    fewer than three layers or all are alike.
    """

    model: str
    texts: int
    readings: tuple[LayerReading, ...]
    sensitivities: tuple[LayerSensitivity, ...]
    binding_layer: int | None
    correlations: Mapping[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """As `map --json` prints it."""
        fields = asdict(self)
        return {"damages" if name == "sensitivities" else name: each for name, each in fields.items()}

    def as_toml(self) -> dict[str, Any]:
        """The `[map]` table of a file in `models/`: a list over layers for each reading and loss."""
        table: dict[str, Any] = {"texts": self.texts}
        table |= {name: [round(getattr(each, name), 4) for each in self.readings] for name in READINGS}
        for bits in CAUSAL_BITS:
            table[f"loss_at_{bits}_bits"] = [round(each.loss, 6) for each in self.sensitivities if each.bits == bits]
        return {"map": table | ({"binding_layer": self.binding_layer} if self.binding_layer is not None else {})}


def draw_map(model: str, texts: int, readings: Sequence[LayerReading], sensitivities: Sequence[LayerSensitivity]) -> ModelMap:
    """Readings and sensitivities of every layer as one map."""
    losses = [each.loss for each in sensitivities if each.bits == min(CAUSAL_BITS)]
    correlations = {name: _spearman([getattr(each, name) for each in readings], losses) for name in READINGS}
    return ModelMap(model, texts, tuple(readings), tuple(sensitivities), binding_layer(readings), correlations)


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho; None for fewer than three values, or where all are alike."""
    from scipy import stats

    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(stats.spearmanr(a, b).statistic)


def _type_of(tensor: Tensor, bits: int) -> str:
    """The first GGUF type of so many bits that a tensor can take. Raises PlanError where there is none."""
    found = next((each for each in NATIVE_OF_BITS[bits] if fits(tensor, each)), None)
    if found is None:
        raise PlanError(
            f"{tensor.name} of shape {tensor.shape} takes no type of {bits} bits: their blocks don't divide its "
            f"{tensor.shape[-1]} columns, so there is no map of this model"
        )
    return found


def layer_sensitivity(trial: TrialModel, layer: int, tensors: Sequence[Tensor], bits: int) -> LayerSensitivity:
    """Round a layer's tensors, each to the type that a tier of so many bits gives it. Raises PlanError where none fits."""
    types = {tensor.name: _type_of(tensor, bits) for tensor in tensors}
    with trial.rounded(types):
        vectors = trial.encode(trial.model)
    kept = neighbours_kept(trial.reference, vectors)
    return LayerSensitivity(layer, bits, float(trial.loss(vectors).mean()), float(kept.mean()))
