"""A training run's checkpoint as a safetensors file: with it, a run that was killed goes on in the same steps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tierexport.base.files import write_whole
from tierexport.base.records import Floats
from tierexport.base.stages import stage_key
from tierexport.training.goals import Goal, Pairs, Schedule, Trainee
from tierexport.vectors.codecs import Codec
from tierexport.vectors.storage import cell_arrays, cells_in

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each weight."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they are now and the best so far, Adam's moments, all by weight's name; the codec; and `progress`, JSON-able:
    the steps done, the best step, the scores.
    """

    weights: Mapping[str, torch.Tensor]
    best: Mapping[str, Floats]
    moments: Mapping[str, Mapping[str, torch.Tensor]]
    codec: Codec | None
    progress: Mapping[str, Any]


def key_of(module: str, trainee: Trainee, pairs: Pairs, goal: Goal, schedule: Schedule) -> str:
    """All that decides a run's steps, digested, the code of `module` included."""
    arrays = (pairs.queries, pairs.passages, pairs.passage)
    seen = [hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for each in arrays]
    shapes = {name: [*each.shape, str(each.device)] for name, each in trainee.weights.items()}
    return stage_key(module, asdict(goal), asdict(schedule), shapes, trainee.threads, torch.__version__, seen)


def write_checkpoint(path: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write it whole or not at all."""
    arrays = {f"best.{name}": each for name, each in checkpoint.best.items()}
    for name, each in checkpoint.weights.items():
        arrays[f"now.{name}"] = each.detach().cpu().numpy()
        moments = checkpoint.moments[name]  # empty for what no vector depends on, such as a pooler that isn't used
        arrays |= {f"{moment}.{name}": moments[moment].cpu().numpy() for moment in MOMENTS if moment in moments}
    if checkpoint.codec is not None:
        arrays |= cell_arrays(checkpoint.codec)
    run = json.dumps({"key": key, **checkpoint.progress})
    write_whole(path, save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, {"run": run}))


def read_checkpoint(path: Path, key: str, level: str, names: Sequence[str]) -> Checkpoint | None:
    """What `write_checkpoint` wrote under this key for weights of these names; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {}).get("run", "{}"))
            if progress.get("key") != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, ValueError):
        return None
    moments = {name: {part: arrays[f"{part}.{name}"] for part in MOMENTS if f"{part}.{name}" in arrays} for name in names}
    codec = Codec(level, **cells_in({name: each.numpy() for name, each in arrays.items() if "." not in name}))
    now, best = ({name: arrays[f"{which}.{name}"] for name in names} for which in ("now", "best"))
    return Checkpoint(now, {name: each.numpy() for name, each in best.items()}, moments, codec, progress)
