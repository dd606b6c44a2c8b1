"""The texts of a verification beside the built-in sentences."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tierexport.base.errors import DataError
from tierexport.base.paths import expanded
from tierexport.base.records import RetrievalSet
from tierexport.datasets.beir import read_retrieval_set
from tierexport.datasets.calibration import read_sts
from tierexport.recipe.schema import VerifySettings


@dataclass(frozen=True)
class Material:
    """The texts of a verification beside the screen."""

    sets: tuple[RetrievalSet, ...] = ()
    sts: tuple[tuple[float, str, str], ...] = ()
    sts_name: str = ""


def read_material(settings: VerifySettings, folder: Path) -> Material:
    """Read what a recipe or a command names. Raises DataError, or MachineError for a hub out of reach."""
    sets = tuple(read_retrieval_set(each, folder) for each in settings.data)
    if twice := [name for name, count in Counter(each.name for each in sets).items() if count > 1]:
        raise DataError(f"two retrieval sets are named {twice[0]!r}: nobody could tell their figures apart")
    if settings.sts is None:
        return Material(sets)
    path = folder / expanded(settings.sts)
    return Material(sets, tuple(read_sts(path)), path.name)
