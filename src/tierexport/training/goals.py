"""What training takes and gives: the goal, the schedule, the pairs, what is trained, and the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tierexport.base.records import Floats
from tierexport.vectors.codecs import Codec

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Goal:
    """What is trained for: the level, how bounds are chosen, whether queries are quantized, too, and the expansion factor:
    how many dimensions a head puts out for each that the model has.
    """

    level: str
    scaling: str = "rolling"
    quantized_queries: bool = True
    widen: int = 1


@dataclass(frozen=True)
class Schedule:
    """Adam's steps, how many lie between checkpoints, pairs per step, learning rate, softmax temperature, the contrastive
    loss's share of the loss, seed.
    """

    steps: int = 10_000
    every: int = 500
    batch: int = 256
    rate: float = 3e-4
    temperature: float = 0.05
    contrast: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """fp32's unit vectors of queries, float32 (pairs, dimensions), and of passages, float32 (passages, dimensions), and
    the passage that belongs to each query, int64 (pairs,).
    """

    queries: Floats
    passages: Floats
    passage: Rows


class Trainee(Protocol):
    """What makes vectors of the pairs' texts, and has weights to be trained."""

    @property
    def weights(self) -> Mapping[str, "torch.nn.Parameter"]:
        """What is trained, by name."""

    @property
    def threads(self) -> int:
        """How many torch may use."""

    def embed(self, kind: str, rows: Rows) -> "torch.Tensor":
        """Vectors of some texts, "query" or "passage", float32 (rows, dimensions), of any length."""


@dataclass(frozen=True)
class Trained:
    """The best weights by name, the codec for them, the step that reached them, and NDCG@10 on held-back pairs at each
    checkpoint, the first before any step.
    """

    weights: Mapping[str, Floats]
    codec: Codec
    step: int
    scores: Sequence[float]
