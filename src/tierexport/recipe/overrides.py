"""`--set KEY=VALUE`: puts a value at a dotted path of a recipe document."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from tierexport.base.digests import value_digest
from tierexport.base.errors import RecipeError

_NOT_TOLD = ("name=", "model=", "base_model=", "description=", "verify.")
"""How settings begin that change no weight, or that are in the name of a folder already."""

LONGEST_SLUG = 60


def override(document: dict[str, Any], setting: str) -> None:
    """Apply "KEY=VALUE" to a document. The value is TOML or, where it is none, a plain text.

    Tables on the way that are not there are made; entries of a list are named by their number. Raises RecipeError for what
    is no KEY=VALUE, and where the path leads through a value or beyond a list.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting!r} is not KEY=VALUE, as in --set calibration.tokens=8192")
    *parents, last = key.split(".")
    place: Any = document
    for depth, part in enumerate(parents):
        place = _step(place, part, ".".join(parents[: depth + 1]))
    if isinstance(place, list):
        place[_index(place, last, key)] = _value(text)
    elif isinstance(place, dict):
        place[last] = _value(text)
    else:
        raise RecipeError(f"--set {key}: there is nothing below {'.'.join(parents)!r}")


def slug_of(settings: Sequence[str]) -> str:
    """What the name of a folder has of `--set` values: those that make other weights, and are not in the name already."""
    telling = [each for each in settings if not each.startswith(_NOT_TOLD)]
    slug = "-".join(re.sub(r"[^\w.]+", "-", each).strip("-") for each in telling)
    return slug if len(slug) <= LONGEST_SLUG else f"{slug[:LONGEST_SLUG]}-{value_digest(telling)[:8]}"


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _step(place: Any, part: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, path)]
    if isinstance(place, dict):
        return place.setdefault(part, {})
    raise RecipeError(f"--set {path}: there is nothing below it")


def _index(place: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise RecipeError(f"--set {path}: the list has entries 0 to {len(place) - 1}, not {part!r}")
    return int(part)
