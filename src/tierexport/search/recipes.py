"""From types per group to a recipe document that plan and build take as it is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tierexport.formats.gguf.types import NATIVE_OF_BITS
from tierexport.search.groups import Group


def document(name: str, description: str, model: str, types: Mapping[str, str], groups: Sequence[Group]) -> dict[str, Any]:
    """A recipe in which each group has the type that `types` gives it by its name."""
    tiers = {native.lower(): {"bits": bits_of(native), "gguf": native} for native in sorted(set(types.values()))}
    layers: dict[tuple[str, str], list[int]] = {}  # in which each role has each type
    for group in groups:
        layers.setdefault((types[group.name], group.role), []).extend([] if group.layer is None else [group.layer])
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # roles that have a type in the same layers
    for (native, role), found in layers.items():
        together.setdefault((native.lower(), tuple(_ranges(found))), []).append(role)
    rules = [
        {"tier": tier, "roles": roles} | ({"layers": list(ranges)} if ranges else {})
        for (tier, ranges), roles in together.items()
    ]
    return {"name": name, "description": description, "model": model, "formats": ["gguf"], "tiers": tiers, "rules": rules}


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
