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
from typing import TYPE_CHECKING

from tierexport.base.archive import tools
from tierexport.base.files import write_json
from tierexport.base.progress import stage
from tierexport.base.stages import stage_key
from tierexport.formats.job import Job
from tierexport.formats.protocol import Reader
from tierexport.model.stages import source_stages
from tierexport.quantize.targets import NOTHING_ROUNDED
from tierexport.search.effects import Option
from tierexport.search.groups import Group, types_of

if TYPE_CHECKING:
    from tierexport.search.study import Study

UNIT = "Q8_0"
"""The type whose file's time is 1: every model is offered in it."""

TEXTS = 8
TOKENS = 128
"""Of so many texts, the search's longest, so many tokens at most."""

TURNS = 8
"""Every file encodes the texts once a turn; the first warms up, of the others the median counts."""

Times = Mapping[str, float]
"""The time of a file whose layers are all of a type, as a share of Q8_0's, by type."""


def times_of(study: "Study") -> Times:
    """The time of every type that a group of layers may get, from the cache or measured now.

    Raises ArtifactError where llama.cpp fails.
    """
    natives = sorted({each.native for group in _layered(study.groups) for each in study.effects.options[group.name]} - {UNIT})

    def measure(folder: Path) -> None:
        with stage("Timing each type") as running:
            running.total((1 + len(natives)) * (1 + TURNS))
            write_json(folder / "times.json", _measured(study, natives, running.step))

    machine = [platform.machine(), platform.processor(), platform.node(), os.cpu_count(), os.environ.get("OMP_NUM_THREADS")]
    stages, key = source_stages(study.source), stage_key("tierexport.search.times", natives, machine, tools())
    found: Times = json.loads((stages.run("times", key, measure) / "times.json").read_text("utf-8"))
    return found


def time_of(group: Group, option: Option, groups: Sequence[Group], times: Times) -> float:
    """What a group adds to the time of a file at an option, as a share of the time of Q8_0's; outside the layers nothing."""
    if group.layer is None:
        return 0.0
    return times[option.native] * _parameters([group]) / _parameters(_layered(groups))


def _layered(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.layer is not None]


def _parameters(groups: Sequence[Group]) -> int:
    return sum(tensor.parameters for group in groups for tensor in group.tensors)


def _measured(study: "Study", natives: Sequence[str], progress: Callable[[int], None]) -> dict[str, float]:
    """See `times_of`. `progress`: called with the number of steps done since the last call."""
    layered = _layered(study.groups)
    texts = sorted((text.text for text in study.texts), key=len)[-TEXTS:]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        readers, shares = {}, {}
        for native in (UNIT, *natives):
            types = {group.name: native if group in layered and native in types_of(group) else UNIT for group in study.groups}
            path = Path(scratch) / f"{native}.gguf"
            made = study.plan(types, native)
            study.format.write(Job(made.formats[0], made, study.imatrix), NOTHING_ROUNDED, path, lambda _: None)
            readers[native] = stack.enter_context(closing(study.format.open(path, "cpu")))
            shares[native] = _parameters([group for group in layered if types[group.name] == native]) / _parameters(layered)
            progress(1)
        turns = []
        for _ in range(TURNS):
            turns.append({native: _seconds(reader, texts) for native, reader in readers.items()})
            progress(len(readers))
    taken = {native: statistics.median(turn[native] / turn[UNIT] for turn in turns[1:]) for native in readers}
    return {native: (whole - 1 + shares[native]) / shares[native] for native, whole in taken.items()}


def _seconds(reader: Reader, texts: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return reader.encode(texts, "", TOKENS, Path(folder)).seconds
