"""Finds the files that come with tierexport: `recipes/`, `models/` and `third_party/`.

In a checkout they lie at its top; an installed wheel puts them below `share/tierexport`.
"""

import sysconfig
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]


def shipped(folder: str) -> Path:
    """The folder of that name, of the checkout that runs or of the installed package."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / folder
    return Path(sysconfig.get_path("data")) / "share" / "tierexport" / folder
