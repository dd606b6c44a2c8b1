"""Sizes as people write and read them: 16MB, 15.5 MiB, 1.2GB."""

import re

from tierexport.base.errors import InputError

UNITS = {"B": 1, "KB": 10**3, "KIB": 2**10, "MB": 10**6, "MIB": 2**20, "GB": 10**9, "GIB": 2**30}
"""Bytes of each unit, its name in capitals."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """The bytes that "16MB", "15.5 MiB" or "1GB" means. Raises InputError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].upper() not in UNITS or not (size := int(float(found[1]) * UNITS[found[2].upper()])):
        raise InputError(f"{text!r} is no size: write a number and B, KB, MB, GB, KiB, MiB or GiB, as 16MB")
    return size


def shown_size(size: float) -> str:
    """Bytes in the largest of KB, MB and GB that makes a number of at least 1, with three digits."""
    for unit in ("GB", "MB", "KB"):
        if size >= 0.9995 * UNITS[unit]:
            value = size / UNITS[unit]
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{size:.0f} B"
