"""Quantization-aware training of a head, an adapter or the whole model: the loop, its checkpoints and their choice.

Adam (Kingma and Ba 2015, arXiv 1412.6980) with a linear warm-up over WARM steps and a linear decay to zero, on the losses of
losses.py. The result is the checkpoint with the best NDCG@10 on pairs that are not trained on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.base.workers import threads
from tierexport.metrics.similarity import normalized
from tierexport.training.checkpoint import MOMENTS, Checkpoint, key_of, read_checkpoint, write_checkpoint
from tierexport.training.goals import Goal, Pairs, Rows, Schedule, Trained, Trainee
from tierexport.training.losses import Scored, loss_of, straight_through
from tierexport.vectors.codecs import Codec
from tierexport.vectors.scaling import fit

REFITTED = 100
"""Steps after which the codec's bounds are chosen anew, for the vectors move."""

FITTED_ON = 512
"""Passages that bounds are chosen on while training; at its end it is four times as many."""

HELD_BACK = 10
"""Of so many passages, one is not trained on, nor are its queries: the checkpoint is chosen on them."""

VALIDATED_ON = 2000
"""Held-back queries that a checkpoint is scored on, or up to twice as many, so that its cost does not grow with the pairs."""

WARM = 20
"""Steps in which the rate rises; from then on it falls to zero."""

DEPTH = 10
"""Ranks that NDCG looks at."""


def train(
    trainee: Trainee, pairs: Pairs, goal: Goal, schedule: Schedule, state: Path,
    progress: Callable[[int, float, float], None] = lambda *_: None,
) -> Trained:  # fmt: skip
    """The checkpoint with the best validation NDCG@10, the untrained weights among the candidates; the trainee gets it.

    `state` is a file that keeps what a later run needs to go on, in the same steps to the same weights. `progress`: called at
    every checkpoint with the number of steps done in all, the mean loss since the last one, and the validation NDCG@10.
    Raises VectorError for too few pairs.
    """
    if len(pairs.passages) < 10 * HELD_BACK:
        raise VectorError(f"{len(pairs.passages)} passages are too few to train and to judge on: {10 * HELD_BACK} at least")
    with threads(trainee.threads):
        run = _Run(trainee, pairs, goal, schedule)
        run.resume(state)
        while run.done < schedule.steps:
            loss = run.advance(min(schedule.every, schedule.steps - run.done))
            run.validate()
            run.store(state)
            progress(run.done, loss, run.scores[-1])
        run.load(run.best)
        return Trained(run.best, run.fitted(4 * FITTED_ON), run.best_step, tuple(run.scores))


class _Run:
    """A trainee on its way, with all that decides where it goes next."""

    def __init__(self, trainee: Trainee, pairs: Pairs, goal: Goal, schedule: Schedule) -> None:
        self._trainee, self._pairs, self._goal, self._schedule = trainee, pairs, goal, schedule
        held = pairs.passage % HELD_BACK == 0
        self._rows, self._held = np.flatnonzero(~held), _spread(np.flatnonzero(held), VALIDATED_ON)
        self.optimizer = torch.optim.Adam(list(trainee.weights.values()), schedule.rate)
        self.done, self.best_step = 0, 0
        self.best: dict[str, Floats] = {}
        self.scores: list[float] = []
        self._codec: Codec | None = None
        self._key = key_of(__name__, trainee, pairs, goal, schedule)

    def advance(self, steps: int) -> float:
        """Take some steps; the mean of their losses."""
        if not self.scores:
            self.validate()
        losses = []
        for number in range(self.done, self.done + steps):
            if self._codec is None or number % REFITTED == 0:
                self._codec = self.fitted(FITTED_ON)
            losses.append(self._step(number, self._codec))
        self.done += steps
        return float(np.mean(losses))

    def _step(self, number: int, codec: Codec) -> float:
        """One step of Adam; its loss."""
        loss = loss_of(self._scored(self._batch(number), codec), self._schedule.contrast)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._trainee.weights.values()), 1.0)
        self.optimizer.param_groups[0]["lr"] = self._rate(number)
        self.optimizer.step()
        return float(loss.detach())

    def _scored(self, rows: Rows, codec: Codec) -> Scored:
        """The scores of some pairs' queries with all of these pairs' passages, through the codec, and fp32's."""
        passages, own = np.unique(self._pairs.passage[rows], return_inverse=True)
        found = straight_through(self._trainee.embed("passage", passages), codec)
        queries = self._trainee.embed("query", rows)
        queries = straight_through(queries, codec) if self._goal.quantized_queries else normalize(queries)
        scores = queries @ found.T / self._schedule.temperature
        expected = _product(self._pairs.queries[rows], self._pairs.passages[passages]).to(scores.device)
        return Scored(scores, expected / self._schedule.temperature, torch.from_numpy(own).to(scores.device))

    def _rate(self, number: int) -> float:
        """The learning rate of a step: linear warm-up, then linear decay."""
        return self._schedule.rate * min(1, (number + 1) / WARM) * (1 - number / self._schedule.steps)

    def _batch(self, number: int) -> Rows:
        """The pairs of a step: each epoch a new order, from the seed alone, so that a step can be taken at any time."""
        batch = min(self._schedule.batch, len(self._rows))
        per_epoch = len(self._rows) // batch
        order = np.random.default_rng([self._schedule.seed, number // per_epoch]).permutation(self._rows)
        return order[number % per_epoch * batch :][:batch]

    def fitted(self, count: int) -> Codec:
        """A codec with bounds for what the weights make of so many training passages; its signs are those that other programs
        read, whatever the mean.
        """
        some = _spread(np.unique(self._pairs.passage[self._rows]), count)
        codec = fit(self._unit("passage", some), self._goal.level, self._goal.scaling, far=math.inf)
        return replace(codec, asymmetric=not self._goal.quantized_queries)

    def _unit(self, kind: str, rows: Rows) -> Floats:
        """The trainee's vectors of texts, of unit length, float32 (rows, dimensions)."""
        with torch.no_grad():
            return normalized(self._trainee.embed(kind, rows).cpu().numpy()).astype(np.float32)

    def validate(self) -> None:
        """NDCG@10 of held-back queries among held-back passages, through the codec; keeps the weights if they are the best."""
        codec = self.fitted(FITTED_ON)
        numbers, own = np.unique(self._pairs.passage[self._held], return_inverse=True)
        passages = codec.restored(self._unit("passage", numbers))
        queries = self._unit("query", self._held)
        queries = codec.restored(queries) if self._goal.quantized_queries else queries
        self.scores.append(_ndcg(_product(normalized(queries), normalized(passages)).numpy(), own))
        if self.scores[-1] > max(self.scores[:-1], default=-1.0):
            self.best_step = self.done
            self.best = {name: each.detach().cpu().numpy().copy() for name, each in self._trainee.weights.items()}

    def load(self, weights: Mapping[str, Any]) -> None:
        """Give the trainee these weights."""
        with torch.no_grad():
            for name, each in self._trainee.weights.items():
                each.copy_(torch.as_tensor(weights[name]))

    def store(self, path: Path) -> None:
        """Write all that decides what comes next, whole or not at all."""
        moments = {name: self.optimizer.state[each] for name, each in self._trainee.weights.items()}
        progress = {"done": self.done, "best_step": self.best_step, "scores": self.scores}
        write_checkpoint(path, self._key, Checkpoint(self._trainee.weights, self.best, moments, self._codec, progress))

    def resume(self, path: Path) -> None:
        """Go on from what `store` wrote; where that is of another run, or damaged, nothing happens."""
        if (stored := read_checkpoint(path, self._key, self._goal.level, list(self._trainee.weights))) is None:
            return
        self.done, self.best_step, self.scores = (stored.progress[name] for name in ("done", "best_step", "scores"))
        self.best, self._codec = dict(stored.best), stored.codec
        self.load(stored.weights)
        for name, each in self._trainee.weights.items():
            if moments := {
                part: stored.moments[name][part].to(each.device) for part in MOMENTS if part in stored.moments[name]
            }:
                self.optimizer.state[each] = {"step": torch.tensor(float(self.done)), **moments}


def _ndcg(scores: npt.NDArray[Any], own: Rows) -> float:
    """NDCG@10 of scores, (queries, passages), each query having one relevant passage, in column `own`.

    Of passages with equal scores half are taken to come first, since codes are often equal.
    """
    its = scores[np.arange(len(own)), own][:, None]
    rank = 1 + (scores > its).sum(1) + ((scores == its).sum(1) - 1) / 2
    return float(np.where(rank <= DEPTH, 1 / np.log2(1 + rank), 0).mean())


def _product(queries: npt.NDArray[Any], passages: npt.NDArray[Any]) -> torch.Tensor:
    """Dot products (queries, passages) on as many threads as torch may use; numpy's own threads can't be counted."""
    return torch.from_numpy(queries) @ torch.from_numpy(passages).T


def _spread(rows: Rows, count: int) -> Rows:
    """Between so many of them and twice as many, at even distances; all where there are fewer."""
    return rows[:: max(len(rows) // count, 1)]
