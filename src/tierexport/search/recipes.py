"""From types per group to a recipe document that plan and build take as it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from tierexport.formats.choices import Choices
from tierexport.search.groups import Group


def document(
    name: str, description: str, model: str, types: Mapping[str, str], groups: Sequence[Group], fmt: str, choices: Choices
) -> dict[str, Any]:
    """A recipe for a format in which each group has the type that `types` gives it by its name."""
    tiers = {native.lower(): {"bits": choices.bits(native), fmt: native} for native in sorted(set(types.values()))}
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
    said = {"name": name, "description": description, "model": model, "formats": [fmt]}
    return said | {"tiers": tiers, "rules": rules} | dict(choices.settings)


def _ranges(layers: Sequence[int]) -> list[str]:
    """Layers as recipes write them: 0, 1, 2, 5 become "0-2" and "5"."""
    found: list[list[int]] = []
    for layer in sorted(layers):
        if found and found[-1][-1] == layer - 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return [str(each[0]) if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in found]
