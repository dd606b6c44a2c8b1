"""What can be trained for quantized vectors: a linear head on known vectors, a LoRA adapter, or a whole model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tierexport.base.libraries import need
from tierexport.base.records import Floats
from tierexport.metrics.similarity import normalized
from tierexport.model.batches import batches, original_order
from tierexport.training.goals import Pairs, Rows, Schedule
from tierexport.vectors.scaling import widening

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "head": {},
    "lora": {"batch": 64, "rate": 3e-4},
    "model": {"batch": 64, "rate": 3e-5},
}
"""What can be trained, and where its schedule differs from Schedule's own."""

RANK = 16
"""Rank of a LoRA adapter's matrices."""

CHARACTERS = 16_384
"""Characters of a batch that goes through a model at once, padded."""


def schedule_for(what: str, steps: int, every: int, contrast: float, seed: int) -> Schedule:
    """The schedule for a head, a LoRA adapter or a whole model. Raises MachineError where what it takes is not installed."""
    if what == "lora":
        need("peft", "lora", "training a LoRA adapter")
    return Schedule(**{"steps": steps, "every": every, "contrast": contrast, "seed": seed, **SCHEDULES[what]})


class Head:
    """A linear map after the model, trained on its fp32 vectors from where it changes no cosine: the identity, or rotations
    beside it. `widen`: the expansion factor, how many dimensions it puts out for each that the model has.

    One thread, for products so small gain nothing by more and suffer on a busy machine, and sums then come out the same on
    any number of cores.
    """

    threads = 1

    def __init__(self, pairs: Pairs, widen: int = 1) -> None:
        dimensions = pairs.queries.shape[1]
        start = widening(dimensions, widen, False)
        start = np.eye(dimensions, dtype=np.float32) if start is None else start
        self._vectors = {"query": torch.from_numpy(pairs.queries), "passage": torch.from_numpy(pairs.passages)}
        self.weights = {"head": torch.nn.Parameter(torch.from_numpy(start))}

    def embed(self, kind: str, rows: Rows) -> torch.Tensor:
        """See Trainee."""
        return self._vectors[kind][rows] @ self.weights["head"]


def applied(head: Floats, vectors: Floats) -> Floats:
    """Vectors through a head, of unit length again, float32; `head`: (dimensions, stored dimensions)."""
    return normalized(vectors @ head).astype(np.float32)


class Network:
    """A model's own weights, or a LoRA adapter (Hu et al. 2021, arXiv 2106.09685) on all its matrices.

    It stays in evaluation mode: without dropout, a step depends on nothing but what a checkpoint stores.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        texts: Mapping[str, Sequence[str]],
        prompts: Mapping[str, str],
        lora: bool,
        seed: int,
    ) -> None:
        self.model, self._texts, self._prompts = model, texts, prompts
        self.threads = torch.get_num_threads()
        self._adapter = _adapter(model, seed) if lora else None
        self.weights = {name: each for name, each in model.named_parameters() if each.requires_grad}

    def embed(self, kind: str, rows: Rows) -> torch.Tensor:
        """See Trainee; in batches of like length."""
        chosen = [self._texts[kind][row] for row in rows]
        given = list(batches(self.model, chosen, [len(text) for text in chosen], self._prompts[kind], CHARACTERS))
        found = torch.cat([self.model(dict(batch.features))["sentence_embedding"] for batch in given])
        order = original_order(batch.rows for batch in given)
        return found[torch.from_numpy(order).to(found.device)]

    def merged(self) -> "SentenceTransformer":
        """The model as it is saved: an adapter becomes part of the matrices beside it."""
        if self._adapter is not None:
            self._adapter.merge_and_unload()
        return self.model.cpu()


def _adapter(model: "SentenceTransformer", seed: int) -> Any:
    """A LoRA adapter on all matrices of a model, as peft makes it, the model's own weights frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model.requires_grad_(False)
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by an old name
        return get_peft_model(model.transformers_model, settings).eval()
