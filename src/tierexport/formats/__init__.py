"""The artifacts' formats: what a tier means in each, and how one is written, opened, inspected and described."""

from importlib import import_module

from tierexport.base.registry import FORMATS
from tierexport.formats.protocol import Format
from tierexport.recipe.schema import Recipe


def format_named(name: str, recipe: Recipe | None = None) -> Format:
    """The object of a registered format, set up as a recipe says. Raises KeyError for a name that is not registered."""
    module, _, kind = FORMATS[name].partition(":")
    found: Format = getattr(import_module(module), kind)(recipe)
    return found


def formats_of(recipe: Recipe) -> tuple[Format, ...]:
    """The formats that a recipe asks for, set up as it says."""
    return tuple(format_named(name, recipe) for name in recipe.formats)


def all_formats() -> tuple[Format, ...]:
    """Every registered format, in the order in which they are registered."""
    return tuple(map(format_named, FORMATS))


def by_suffix(name: str) -> Format:
    """The format whose weight files end as this name does; for any other name the first that is registered, whose reader
    says what it finds instead.
    """
    return sorted(all_formats(), key=lambda fmt: not name.endswith(fmt.suffix))[0]
