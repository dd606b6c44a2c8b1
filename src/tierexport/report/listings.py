"""Tables of what comes with tierexport."""

import re
from collections.abc import Mapping, Sequence

from rich.markup import escape

from tierexport.base.validation import Key
from tierexport.recipe.read import ShippedRecipe
from tierexport.report.sheet import Sheet, new_sheet

_BELOW, _LINK = re.compile(r" \(\[below\]\([^)]*\)\)"), re.compile(r"\[([^\]]*)\]\([^)]*\)")
"""Links in the meanings of keys, which are written for docs/recipes.md: within that page, and to others."""


def recipes_table(found: Sequence[ShippedRecipe]) -> Sheet:
    """A row per recipe."""
    table = new_sheet("recipes", "recipe", "model", "bits by tier", "description", text=("bits by tier", "description"))
    for each in found:
        bits = ", ".join(f"{name} {bits}" for name, bits in each.bits.items())
        table.add_row(*map(escape, (each.name, each.model, bits, each.description)))
    return table


def models_table(names: Sequence[str]) -> Sheet:
    """A row per description of a model."""
    table = new_sheet("models; any folder, ORG/NAME of a hub or pypi:PACKAGE will do as well", "model")
    for name in names:
        table.add_row(name)
    return table


def keys_table(keys: Mapping[str, Key]) -> Sheet:
    """A row per key of a recipe: NAME stands for a tier's name, N for the number of a rule, from 0."""
    table = new_sheet("keys of a recipe", "key", "value", "default", "what it does", text=("value", "default", "what it does"))
    for path, key in keys.items():
        meaning = _LINK.sub(r"\1", _BELOW.sub("", key.meaning))
        table.add_row(*map(escape, (path, key.expected, key.default, meaning)))
    return table


def documents_table(titles: Mapping[str, str]) -> Sheet:
    """A row per document."""
    table = new_sheet("tierexport docs NAME shows one", "document", "title")
    for name, title in titles.items():
        table.add_row(name, escape(title))
    return table
