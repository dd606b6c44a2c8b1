"""Tunes a rounded model towards fp32's vectors: the parameters that stay in fp32 anyway, and the scales of blocks.

Biases and norms cost no byte more, and a scale is stored whatever its value; levels stay as they are. Knowledge distillation
(Hinton et al. 2015, arXiv 1503.02531) from the fp32 model, without labels; lesson.py has the loss. Adam (Kingma and Ba 2015,
arXiv 1412.6980), its rate falling along a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983):
RATE · (1 + cos(π · step / TUNING_STEPS)) / 2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tierexport.base.errors import MachineError
from tierexport.base.records import Text
from tierexport.base.stages import Stages
from tierexport.quantize.lesson import Lesson
from tierexport.quantize.student import Student
from tierexport.quantize.targets import TUNING_STEPS, Rounded

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SEGMENT = 20
"""Steps after which the loss on the held-back texts is measured, and the state is stored."""

PATIENCE = 2
"""Segments without progress on the held-back texts that end the tuning."""

RATE = 5e-4
"""Adam's rate at the start; it falls to zero along a cosine."""


def distill(
    model: "SentenceTransformer",
    teacher: "SentenceTransformer",
    texts: Sequence[Text],
    rounded: Rounded,
    tunable: Sequence[str],
    stages: Stages,
    key: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Rounded:
    """`rounded` with scales and fp32 parameters tuned so that the vectors come nearer to the teacher's.

    `model` runs with the rounded weights, `tunable` names those of its parameters that the format keeps in fp32. The scales
    of K-quants, which are integers in units of their super-block's scale, stay. What is best on held-back texts is taken, at
    worst `rounded` as it is. Each segment is kept in `stages` under `key`. `progress`: called with the number of steps done
    since the last call. Runs on CUDA where there is one. Raises MachineError when its memory is too small.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for each in (model, teacher):
        each.to(device).requires_grad_(False)
    try:
        tuning = _Tuning(Student(model, rounded, tunable), Lesson(model, teacher, texts, TUNING_STEPS), stages, key)
        return tuning.best(rounded, progress)
    except torch.OutOfMemoryError as error:
        raise MachineError("too little GPU memory for tuning: set CUDA_VISIBLE_DEVICES= to tune on the CPU") from error


@dataclass(frozen=True)
class _Tuning:
    """A student, what it learns from, and where its segments are stored."""

    student: Student
    lesson: Lesson
    stages: Stages
    key: str

    def best(self, untuned: Rounded, progress: Callable[[int], None]) -> Rounded:
        """What had the least loss on held-back texts, of the state before any step and those after each segment."""
        best, losses = untuned, [self.lesson.held_back_loss(self.student)]
        for segment in range(TUNING_STEPS // SEGMENT):
            losses.append(self._segment(segment))
            progress(SEGMENT)
            if not math.isfinite(losses[-1]):
                break
            if losses[-1] == min(losses):
                best = self.student.rounded()
            if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
                break
        return best

    def _segment(self, segment: int) -> float:
        """Tune for SEGMENT steps, or load the state that an earlier run stored after them; the loss on held-back texts."""

        def make(folder: Path) -> float:
            for step in range(segment * SEGMENT, (segment + 1) * SEGMENT):
                rate = RATE * (1 + math.cos(math.pi * step / TUNING_STEPS)) / 2
                self.student.learn(self.lesson.losses(self.student, step), rate)
            self.student.save(folder / "state.safetensors")
            return self.lesson.held_back_loss(self.student)

        folder = self.stages.run(f"tuned-{segment}", self.key, make)
        self.student.load(folder / "state.safetensors")
        return float(self.stages.notes(f"tuned-{segment}"))
