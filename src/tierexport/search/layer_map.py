"""The map of a model: what each layer does beside what rounding it alone costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from scipy import stats

from tierexport.base.errors import PlanError
from tierexport.base.records import Tensor
from tierexport.formats.gguf.types import NATIVE_OF_BITS, fits
from tierexport.metrics.similarity import neighbours_kept
from tierexport.search.bench import Bench
from tierexport.search.layers import LayerReading, binding_layer

CAUSAL_BITS = (4, 8)
READINGS = tuple(each.name for each in fields(LayerReading) if each.name != "layer")


@dataclass(frozen=True)
class LayerDamage:
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
    damages: tuple[LayerDamage, ...]
    binding_layer: int | None
    correlations: Mapping[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """As `map --json` prints it."""
        return asdict(self)

    def as_toml(self) -> dict[str, Any]:
        """The `[map]` table of a file in `models/`: a list over layers for each reading and loss."""
        table: dict[str, Any] = {"texts": self.texts}
        table |= {name: [round(getattr(each, name), 4) for each in self.readings] for name in READINGS}
        for bits in CAUSAL_BITS:
            table[f"loss_at_{bits}_bits"] = [round(each.loss, 6) for each in self.damages if each.bits == bits]
        return {"map": table | ({"binding_layer": self.binding_layer} if self.binding_layer is not None else {})}


def draw_map(model: str, texts: int, readings: Sequence[LayerReading], damages: Sequence[LayerDamage]) -> ModelMap:
    """Readings and damages of every layer as one map."""
    crushed = [each.loss for each in damages if each.bits == min(CAUSAL_BITS)]
    correlations = {name: _spearman([getattr(each, name) for each in readings], crushed) for name in READINGS}
    return ModelMap(model, texts, tuple(readings), tuple(damages), binding_layer(readings), correlations)


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(stats.spearmanr(a, b).statistic)


def _type_of(tensor: Tensor, bits: int) -> str:
    found = next((each for each in NATIVE_OF_BITS[bits] if fits(tensor, each)), None)
    if found is None:
        raise PlanError(
            f"{tensor.name} of shape {tensor.shape} takes no type of {bits} bits: their blocks don't divide its "
            f"{tensor.shape[-1]} columns, so there is no map of this model"
        )
    return found


def damage_of(bench: Bench, layer: int, tensors: Sequence[Tensor], bits: int) -> LayerDamage:
    """Round a layer's tensors, each to the type that a tier of so many bits gives it. Raises PlanError where none fits."""
    types = {tensor.name: _type_of(tensor, bits) for tensor in tensors}
    with bench.rounded(types):
        vectors = bench.encode(bench.model)
    kept = neighbours_kept(bench.reference, vectors)
    return LayerDamage(layer, bits, float(bench.loss(vectors).mean()), float(kept.mean()))
