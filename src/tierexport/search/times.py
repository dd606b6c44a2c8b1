"""How long llama.cpp takes with each type on this machine: whole files whose layers have one type, in turns.

Time is taken to grow with the parameters that are multiplied, so that the time of any choice of types is the mean of these
files' times, each matrix weighing its share of the layers' parameters.
"""

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from tierexport.base.archive import tools
from tierexport.base.files import write_json
from tierexport.base.progress import stage
from tierexport.base.stages import Stages, stage_key
from tierexport.formats.protocol import Reader
from tierexport.search.effects import Option
from tierexport.search.groups import Group

TEXTS = 8
TOKENS = 128
"""Of so many texts, the search's longest, so many tokens at most."""

TURNS = 8
"""Every file encodes the texts once a turn; the first warms up, of the others the median counts."""

Times = Mapping[str, float]
"""The time of a file whose layers are all of a type, as a share of the unit's, by type."""

Make = Callable[[Mapping[str, str], Path], Reader]
"""Writes a file with these types by group to a path, and opens it."""


def times_of(
    groups: Sequence[Group], natives: Sequence[str], unit: str, make: Make, texts: Sequence[str], stages: Stages,
    code: Sequence[str],
) -> Times:  # fmt: skip
    """The time of each of these types and of the type `unit`, from `stages` or measured now on the longest of `texts`.

    `code`: modules that decide it. Raises ArtifactError where llama.cpp fails.
    """

    def measure(folder: Path) -> None:
        with stage("Timing each type") as running:
            every = [unit, *(each for each in natives if each != unit)]
            running.total(len(every) * (1 + TURNS))
            write_json(folder / "times.json", _measured(groups, every, make, sorted(texts, key=len)[-TEXTS:], running.step))

    machine = [platform.machine(), platform.processor(), platform.node(), os.cpu_count(), os.environ.get("OMP_NUM_THREADS")]
    key = stage_key(("tierexport.search.times", *code), natives, unit, machine, tools())
    found: Times = json.loads((stages.run("times", key, measure) / "times.json").read_text("utf-8"))
    return found


def time_of(group: Group, option: Option, groups: Sequence[Group], times: Times) -> float:
    """What a group adds to the time of a file at an option, as a share of the unit's time; outside the layers nothing."""
    if group.layer is None:
        return 0.0
    return times[option.native] * _parameters([group]) / _parameters(_layered(groups))


def _layered(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.layer is not None]


def _parameters(groups: Sequence[Group]) -> int:
    return sum(tensor.parameters for group in groups for tensor in group.tensors)


def _measured(
    groups: Sequence[Group], natives: Sequence[str], make: Make, texts: Sequence[str], progress: Callable[[int], None]
) -> dict[str, float]:
    """See `times_of`, the first type being the unit. `progress`: called with the number of steps done since the last call."""
    unit = natives[0]
    layered = _layered(groups)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        readers, shares = {}, {}
        for native in natives:
            types = {group.name: native if group in layered and native in group.bytes else unit for group in groups}
            readers[native] = stack.enter_context(closing(make(types, Path(scratch) / f"{native}.gguf")))
            shares[native] = _parameters([group for group in layered if types[group.name] == native]) / _parameters(layered)
            progress(1)
        turns = []
        for _ in range(TURNS):
            turns.append({native: _seconds(reader, texts) for native, reader in readers.items()})
            progress(len(readers))
    taken = {native: statistics.median(turn[native] / turn[unit] for turn in turns[1:]) for native in readers}
    return {native: (whole - 1 + shares[native]) / shares[native] for native, whole in taken.items()}


def _seconds(reader: Reader, texts: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return reader.encode(texts, "", TOKENS, Path(folder)).seconds
