"""The artifacts' formats: what a tier means in each, and how one is written and opened."""

from tierexport.formats.gguf import GgufFormat
from tierexport.formats.torchao import TorchaoFormat
from tierexport.records import Format, Recipe


def formats_of(recipe: Recipe) -> tuple[Format, ...]:
    """The formats a recipe asks for, set up as it says."""
    known: dict[str, Format] = {"gguf": GgufFormat(), "torchao": TorchaoFormat(recipe.torchao)}
    return tuple(known[name] for name in recipe.formats)
