"""Finds the files that come with tierexport: `recipes/`, `models/` and `third_party/`.

In a checkout they lie at its top, in an installed wheel inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """The folder of that name, of the installed package or of the checkout."""
    installed = _PACKAGE / folder
    return installed if installed.is_dir() else _PACKAGE.parents[1] / folder
