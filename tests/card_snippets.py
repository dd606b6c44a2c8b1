"""The code that a card shows, and what it makes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tierexport.base.records import Floats


def snippet(card: str, heading: str, language: str, number: int = 0) -> str:
    """The code below a heading, as the card shows it."""
    section = card.partition(f"\n### {heading}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", section, re.S)
    return found[number]


def python(code: str, name: str, folder: Path, environment: Mapping[str, str] | None = None) -> Floats:
    """What a snippet leaves in a variable, run in a process of its own by somebody without tierexport's help."""
    told = f"\nimport json as _json; _v = {name}; print('\\n' + _json.dumps(_v.tolist() if hasattr(_v, 'tolist') else _v))"
    done = subprocess.run(
        [sys.executable, "-c", code + told], cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]), np.float32).reshape(-1)


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
