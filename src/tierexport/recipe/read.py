"""From a TOML file to a `Recipe`: reads it, applies overrides, makes paths absolute, and has pydantic check it."""

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tierexport.base.errors import RecipeError
from tierexport.base.shipped import names_of, shipped
from tierexport.base.validation import first_mistake, nearest
from tierexport.recipe.overrides import override
from tierexport.recipe.paths import absolute, settle_existing, settle_paths
from tierexport.recipe.schema import Recipe, Rule, recipe_keys

_RECIPE = TypeAdapter(Recipe)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `KEY=VALUE` overrides, whose keys are dotted paths.

    A name without a suffix is looked up among the shipped recipes. Raises RecipeError with the
    key's path, its value, the rule, and the nearest name where one was misspelt.
    """
    document = load_document(path)
    for setting in overrides:
        override(document, setting)
    settle_existing(document, Path(), [setting.partition("=")[0] for setting in overrides])
    return parse_recipe(document, _found(path).parent)


def load_document(path: Path) -> dict[str, Any]:
    """The recipe as TOML reads it."""
    try:
        return tomllib.loads(_found(path).read_text("utf-8"))
    except OSError as error:
        listed = ", ".join(names_of("recipes"))
        raise RecipeError(f"can't read the recipe {path} ({error.strerror}); shipped with tierexport: {listed}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with tierexport: the name that commands take, what it says of itself, its model, bits by tier."""

    name: str
    description: str
    model: str
    bits: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """As `recipes --json` prints it."""
        return asdict(self)


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """All of them, by name."""
    found = ((name, read_recipe(Path(name))) for name in names_of("recipes"))
    return tuple(
        ShippedRecipe(name, each.description, each.model, {tier.name: tier.bits for tier in each.tiers.values()})
        for name, each in found
    )


def parse_recipe(document: Mapping[str, Any], folder: Path) -> Recipe:
    """Check a recipe document; `folder` is where its relative paths start. Raises RecipeError."""
    settled = copy.deepcopy(dict(document))
    settle_paths(settled, folder)
    try:
        recipe = _RECIPE.validate_python({**settled, "(folder)": Path(absolute(folder)), "(document)": settled})
    except ValidationError as error:
        raise RecipeError(first_mistake(error, recipe_keys())) from None
    for number, rule in enumerate(recipe.rules):
        _check_rule(rule, f"rules.{number}", recipe)
    if unused := set(recipe.tiers) - {rule.tier for rule in recipe.rules}:
        raise RecipeError(f"tiers.{min(unused)} is used by no rule: remove it, or add a rule for it")
    return recipe


def _check_rule(rule: Rule, path: str, recipe: Recipe) -> None:
    if rule.tier not in recipe.tiers:
        raise RecipeError(f"{path}.tier = {rule.tier!r} is not among the tiers{nearest(rule.tier, list(recipe.tiers))}")
    if not (rule.layers or rule.roles or rule.names):
        raise RecipeError(f"{path} claims nothing: give it layers, roles or names")


def _found(path: Path) -> Path:
    return shipped("recipes") / f"{path}.toml" if not path.is_file() and str(path) in names_of("recipes") else path
