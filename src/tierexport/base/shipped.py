"""Finds the files that come with tierexport: `recipes/`, `models/`, `docs/` and `third_party/`.

In a checkout the folders lie at its top; a wheel has them inside the package, below `shipped/`.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(folder: str) -> Path:
    """The folder of that name, of the installed package or of the checkout that runs."""
    inside = _PACKAGE / "shipped" / folder
    return inside if inside.is_dir() else _PACKAGE.parents[1] / folder


def names_of(folder: str, suffix: str = ".toml") -> list[str]:
    """What commands call the files of a folder, those in its own folders with a slash."""
    place = shipped(folder)
    return sorted(each.relative_to(place).with_suffix("").as_posix() for each in place.rglob(f"*{suffix}"))
