"""From types per group to a recipe document that plan and build take as it is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tierexport.formats.gguf.types import NATIVE_OF_BITS
from tierexport.search.sensitivity import PARTS, Group


def document(name: str, description: str, model: str, types: Mapping[str, str], groups: Sequence[Group]) -> dict[str, Any]:
    """A recipe in which each group has the type that `types` gives it by its name."""
    tiers = {native.lower(): {"bits": bits_of(native), "gguf": native} for native in sorted(set(types.values()))}
    rules = []
    for part in dict.fromkeys(group.part for group in groups):
        here = [group for group in groups if group.part == part]
        for native in sorted({types[group.name] for group in here}):
            layers = [group.layer for group in here if types[group.name] == native and group.layer is not None]
            rule: dict[str, Any] = {"tier": native.lower(), "roles": _roles(part)}
            rules.append(rule | {"layers": _ranges(layers)} if layers else rule)
    return {"name": name, "description": description, "model": model, "formats": ["gguf"], "tiers": tiers, "rules": rules}


def _roles(part: str) -> list[str]:
    """The roles, or the name of their group, that a rule claims for a part."""
    return [part] if part in ("embeddings", "attention", "heads") else list(PARTS[part])


def _ranges(layers: Sequence[int]) -> list[str]:
    """Layers as recipes write them: 0, 1, 2, 5 become "0-2" and "5"."""
    found: list[list[int]] = []
    for layer in sorted(layers):
        if found and found[-1][-1] == layer - 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return [str(each[0]) if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in found]


def bits_of(native: str) -> int:
    """The nominal bits of a GGUF type."""
    known = {name: bits for bits, names in NATIVE_OF_BITS.items() for name in names}
    return known.get(native) or int(re.sub(r"\D*(\d+).*", r"\1", native))
