"""Recipe × Source: which tier each tensor gets, and what that means in each format.

Decides everything before anything is computed; reads no weight.
"""

import fnmatch
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tierexport.base.errors import RecipeError
from tierexport.base.records import Source, Tensor, TextSet
from tierexport.datasets.calibration import text_set
from tierexport.model.languages import languages_of
from tierexport.model.roles import UNQUANTIZED_ROLE, expand
from tierexport.recipe.planned import FormatPlan, PlannedTensor
from tierexport.recipe.ranges import layer_range
from tierexport.recipe.schema import UNQUANTIZED, Recipe, Rule, Tier


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
        return text_set(self.recipe.calibration.texts, languages_of(self.source))

    def check_texts(self) -> None:
        """Read them, where anything is measured on them. Raises DataError."""
        if not self.recipe.calibration.imatrix or any(planned.feeds_back for planned in self.formats):
            _ = self.texts

    def __iter__(self) -> Iterator[FormatPlan]:
        return iter(self.formats)


def make_plan(recipe: Recipe, source: Source, formats: Sequence[PlannedFormat]) -> Plan:
    """Plan every format of the recipe.

    Raises RecipeError for rules that overlap, miss tensors or match nothing, PlanError for a format
    that can't hold the model and for a tensor that can't take its type.
    """
    claims = [_Claim.of(rule, f"rules.{number}", source.layers) for number, rule in enumerate(recipe.rules)]
    tensors = [fmt.tensors(source) for fmt in formats]
    _check_names_match(claims, [each for found in tensors for each in found])
    planned = (_format_plan(fmt, found, claims, recipe) for fmt, found in zip(formats, tensors, strict=True))
    return Plan(recipe, source, tuple(planned))


@dataclass(frozen=True)
class _Claim:
    """A rule made concrete for one depth; `layers` and `roles` are None where it takes any. `label` is for messages."""

    rule: Rule
    label: str
    layers: frozenset[int] | None
    roles: frozenset[str] | None

    @classmethod
    def of(cls, rule: Rule, path: str, depth: int) -> "_Claim":
        layers = frozenset(layer for text in rule.layers for layer in _layers(text, depth, path))
        roles = frozenset(role for each in rule.roles for role in expand(each))
        return cls(rule, f"{path} {rule}", layers if rule.layers else None, roles if rule.roles else None)

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


def _layers(text: str, depth: int, path: str) -> range:
    """The layers of a range, all of which the model has to have."""
    found = layer_range(text, depth)
    if found.stop > depth:
        raise RecipeError(f"{path}.layers: {text!r} goes beyond the model, whose {depth} layers are 0 to {depth - 1}")
    return found


def _check_names_match(claims: Sequence[_Claim], tensors: Sequence[Tensor]) -> None:
    for claim in claims:
        if claim.rule.names and not any(claim.names(tensor) for tensor in tensors):
            raise RecipeError(f"{claim.label}: no tensor is named like that; `tierexport plan` lists the names")


def _format_plan(fmt: PlannedFormat, tensors: Sequence[Tensor], claims: Sequence[_Claim], recipe: Recipe) -> FormatPlan:
    return FormatPlan(fmt.name, tuple(_row(fmt, each, claims, recipe) for each in tensors))


def _row(fmt: PlannedFormat, tensor: Tensor, claims: Sequence[_Claim], recipe: Recipe) -> PlannedTensor:
    tier = _tier(tensor, claims, recipe)
    native, note = fmt.native_type(tensor, tier)
    rounding = recipe.rounding if fmt.takes_feedback(tensor, native) else "nearest"
    return PlannedTensor(tensor, tier, native, fmt.tensor_bytes(tensor, native), rounding, note)


def _tier(tensor: Tensor, claims: Sequence[_Claim], recipe: Recipe) -> Tier:
    if tensor.role == UNQUANTIZED_ROLE:
        return UNQUANTIZED
    found = [claim for claim in claims if claim.takes(tensor)]
    if len(found) != 1:
        raise _not_claimed_once(tensor, found, claims)
    return recipe.tiers[found[0].rule.tier]


def _not_claimed_once(tensor: Tensor, found: Sequence[_Claim], claims: Sequence[_Claim]) -> RecipeError:
    where = f"{tensor.name} ({tensor.role}" + ("" if tensor.layer is None else f", layer {tensor.layer}") + ")"
    if found:
        return RecipeError(f"{where} is claimed by {len(found)} rules: {'; '.join(claim.label for claim in found)}")
    return RecipeError(
        f"{where} is claimed by no rule of {'; '.join(claim.label for claim in claims)}: "
        f'add a rule for it, such as roles = ["{tensor.role}"]'
    )
