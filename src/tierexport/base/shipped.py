"""Finds the files that come with tierexport: `recipes/`, `models/` and `third_party/`.

In a checkout the folders lie at its top; an installed wheel puts them below `share/tierexport`.
"""

import sysconfig
from pathlib import Path

_CHECKOUT = Path(__file__).parents[3]


def shipped(folder: str) -> Path:
    """The folder of that name, of the checkout that runs or of the installed package."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / folder
    return Path(sysconfig.get_path("data")) / "share" / "tierexport" / folder


def names_of(folder: str) -> list[str]:
    """What commands call the TOML files of a folder, those in its own folders with a slash."""
    place = shipped(folder)
    return sorted(each.relative_to(place).with_suffix("").as_posix() for each in place.rglob("*.toml"))
