"""Recipe × Source: which tier each tensor gets, and what that means in each format.

Decides everything before anything is computed; reads no weight.
"""

import fnmatch
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tierexport.base.errors import RecipeError
from tierexport.base.records import UNQUANTIZED, FormatPlan, PlannedTensor, Recipe, Rule, Source, Tensor, TextSet, Tier
from tierexport.datasets.calibration import text_set
from tierexport.model.roles import UNQUANTIZED_ROLE, expand
from tierexport.recipe.schema import layer_range


class PlannedFormat(Protocol):
    """What the plan needs to know of a format: its tensors, and what a tier means for each."""

    name: str

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        """Every tensor the format stores for this model; reads no weights."""

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        """The native type for the tensor, and a note where it is the fallback."""

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        """Whether the tensor can be rounded to the type with error feedback."""

    def tensor_bytes(self, tensor: Tensor, native: str) -> int:
        """Bytes the tensor takes at that type, scales included."""


@dataclass(frozen=True)
class Plan:
    """Recipe × Source: every tensor of every format with its tier and type."""

    recipe: Recipe
    source: Source
    formats: tuple[FormatPlan, ...]

    @functools.cached_property
    def texts(self) -> TextSet:
        """The calibration texts, read when they are first asked for, and once. Raises DataError."""
        settings = self.recipe.calibration
        return text_set(settings.texts, settings.count, self.recipe.folder)

    def __iter__(self) -> Iterator[FormatPlan]:
        return iter(self.formats)


def make_plan(recipe: Recipe, source: Source, formats: Sequence[PlannedFormat]) -> Plan:
    """Plan every format of the recipe.

    Raises RecipeError for rules that overlap, miss tensors or match nothing, PlanError for a format
    that can't hold the model and for a tensor that can't take its type.
    """
    tensors = {fmt.name: fmt.tensors(source) for fmt in formats}
    claims = [_Claim.of(rule, number, source.layers) for number, rule in enumerate(recipe.rules)]
    _check_names_match(claims, [each for found in tensors.values() for each in found])
    return Plan(
        recipe,
        source,
        tuple(FormatPlan(fmt.name, tuple(_row(fmt, each, claims, recipe) for each in tensors[fmt.name])) for fmt in formats),
    )


@dataclass(frozen=True)
class _Claim:
    """A rule made concrete for one depth."""

    rule: Rule
    label: str
    layers: frozenset[int] | None
    roles: frozenset[str] | None

    @classmethod
    def of(cls, rule: Rule, number: int, depth: int) -> "_Claim":
        layers: set[int] = set()
        for text in rule.layers:
            found = layer_range(text, depth, f"rules.{number}")
            if found.stop > depth:
                raise RecipeError(
                    f"rules.{number}.layers: {text!r} goes beyond the model, whose {depth} layers are 0 to {depth - 1}"
                )
            layers.update(found)
        return cls(
            rule,
            f"rules.{number} {rule}",
            frozenset(layers) if rule.layers else None,
            frozenset(role for each in rule.roles for role in expand(each)) if rule.roles else None,
        )

    def takes(self, tensor: Tensor) -> bool:
        return (
            (self.layers is None or tensor.layer in self.layers)
            and (self.roles is None or tensor.role in self.roles)
            and (not self.rule.names or self.names(tensor))
        )

    def names(self, tensor: Tensor) -> bool:
        """Whether a name pattern matches the tensor's name in the format or in the source."""
        named = (tensor.name, *tensor.sources)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.rule.names for name in named)


def _check_names_match(claims: Sequence[_Claim], tensors: Sequence[Tensor]) -> None:
    for claim in claims:
        if claim.rule.names and not any(claim.names(tensor) for tensor in tensors):
            raise RecipeError(f"{claim.label}: no tensor is named like that; `tierexport plan` lists the names")


def _row(fmt: PlannedFormat, tensor: Tensor, claims: Sequence[_Claim], recipe: Recipe) -> PlannedTensor:
    tier = _tier(tensor, claims, recipe)
    native, note = fmt.native_type(tensor, tier)
    rounding = recipe.rounding if fmt.takes_feedback(tensor, native) else "nearest"
    return PlannedTensor(tensor, tier, native, fmt.tensor_bytes(tensor, native), rounding, note)


def _tier(tensor: Tensor, claims: Sequence[_Claim], recipe: Recipe) -> Tier:
    if tensor.role == UNQUANTIZED_ROLE:
        return UNQUANTIZED
    found = [claim for claim in claims if claim.takes(tensor)]
    if len(found) == 1:
        return recipe.tiers[found[0].rule.tier]
    where = f"{tensor.name} ({tensor.role}" + ("" if tensor.layer is None else f", layer {tensor.layer}") + ")"
    if found:
        raise RecipeError(f"{where} is claimed by {len(found)} rules: {'; '.join(claim.label for claim in found)}")
    raise RecipeError(
        f"{where} is claimed by no rule of {'; '.join(claim.label for claim in claims)}: "
        f'add a rule for it, such as roles = ["{tensor.role}"]'
    )
