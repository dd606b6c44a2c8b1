"""A linear head that makes a model's vectors survive quantization, trained on cached vectors in minutes on a CPU.

Straight-through estimation (Bengio et al. 2013, arXiv 1308.3432): going forward, vectors are what their codes stand for;
going back, the gradient passes as if they had not been coded, where they lie within the range. The loss is contrastive:
each query has to find its own passage among those of the batch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from tierexport.errors import VectorError
from tierexport.metrics import normalized
from tierexport.records import Floats
from tierexport.vectors.codecs import CELLS, TOP, Codec
from tierexport.vectors.scaling import fit
from tierexport.workdir import value_digest, write_whole

if TYPE_CHECKING:
    import torch

REFITTED = 100
"""Steps after which the codec's bounds are chosen anew, for the vectors move."""

FITTED_ON = 2048
"""Passages that bounds are chosen on."""

HELD_BACK = 10
"""Of so many passages, one is not trained on, nor are its queries: the best head is chosen on them."""

DECAY = 1e-3
"""Pull towards the identity at each step, as a share of the rate: what no pair speaks of stays as it was."""


@dataclass(frozen=True)
class Goal:
    """What is trained for: the level, how bounds are chosen, and whether queries are quantized, too."""

    level: str
    scaling: str = "rolling"
    quantized_queries: bool = True


@dataclass(frozen=True)
class Schedule:
    """Adam's steps, how many lie between checkpoints, pairs per step, learning rate, softmax temperature, seed."""

    steps: int = 10_000
    every: int = 500
    batch: int = 256
    rate: float = 3e-4
    temperature: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Unit vectors of queries and of their passages, float32 (pairs, dimensions), and which passage it is, int64 (pairs,)."""

    queries: Floats
    passages: Floats
    passage: npt.NDArray[np.int64]

    def part(self, rows: npt.NDArray[np.int64]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.queries[rows], self.passages[rows], self.passage[rows])


@dataclass(frozen=True)
class Trained:
    """The best head, float32 (dimensions, dimensions) to multiply row vectors with, its codec, the step that reached it,
    and NDCG@10 on held-back pairs at each checkpoint, the first before any step.
    """

    head: Floats
    codec: Codec
    step: int
    scores: Sequence[float]


def applied(head: Floats, vectors: Floats) -> Floats:
    """Vectors through a head, of unit length again."""
    return normalized(vectors @ head).astype(np.float32)


def train(
    pairs: Pairs, goal: Goal, schedule: Schedule, state: Path, step: Callable[[int, float, float], None] = lambda *_: None
) -> Trained:
    """The head that held-back pairs like best, the identity among the candidates.

    `state` is a file that keeps what a later run needs to go on, in the same steps to the same weights; `step` hears the
    step, the loss and the score of every checkpoint. Raises VectorError for too few pairs.
    """
    if len(pairs.queries) < 10 * HELD_BACK:
        raise VectorError(f"{len(pairs.queries)} pairs are too few to train and to judge on: {10 * HELD_BACK} at least")
    held = pairs.passage % HELD_BACK == 0
    run = _Run(pairs.part(np.flatnonzero(~held)), pairs.part(np.flatnonzero(held)), goal, schedule)
    run.resume(state)
    with _one_thread():
        while run.done < schedule.steps:
            loss = run.advance(min(schedule.every, schedule.steps - run.done))
            run.judge()
            run.keep(state)
            step(run.done, loss, run.scores[-1])
    head = run.best
    return Trained(head, run.codec_for(head), run.best_step, tuple(run.scores))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: so small products gain nothing by more, suffer on a busy machine, and sums then come
    out the same on any number of cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """A head on its way, with all that decides where it goes next."""

    def __init__(self, pairs: Pairs, held: Pairs, goal: Goal, schedule: Schedule) -> None:
        import torch

        self._pairs, self._held, self._goal, self._schedule = pairs, held, goal, schedule
        dimensions = pairs.queries.shape[1]
        self.head = torch.eye(dimensions, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.head], schedule.rate)
        self.done, self.best_step = 0, 0
        self.best: Floats = np.eye(dimensions, dtype=np.float32)
        self.scores: list[float] = []
        self._codec: Codec | None = None
        self._key = value_digest([asdict(goal), asdict(schedule), [_digest(each) for each in (pairs.queries, pairs.passages)]])
        self.judge()

    def advance(self, steps: int) -> float:
        """Take some steps; the mean of their losses."""
        losses = []
        for number in range(self.done, self.done + steps):
            if self._codec is None or number % REFITTED == 0:
                self._codec = self.codec_for(self.head.detach().numpy())
            losses.append(self._step(number))
        self.done += steps
        return float(np.mean(losses))

    def _step(self, number: int) -> float:
        import torch

        rows = self._rows(number)
        queries, passages = (torch.from_numpy(each[rows]) @ self.head for each in (self._pairs.queries, self._pairs.passages))
        passages = self._quantized(passages)
        queries = self._quantized(queries) if self._goal.quantized_queries else torch.nn.functional.normalize(queries)
        scores = queries @ passages.T / self._schedule.temperature
        same = self._pairs.passage[rows]
        own = torch.eye(len(rows), dtype=torch.bool)
        scores = scores.masked_fill(torch.from_numpy(same[:, None] == same[None]) & ~own, -torch.inf)
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(rows)))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            self.head.lerp_(torch.eye(len(self.head)), DECAY * self._schedule.rate / 3e-4)
        return float(loss.detach())

    def _rows(self, number: int) -> npt.NDArray[np.int64]:
        """The pairs of a step: each epoch a new order, from the seed alone, so that a step can be taken at any time."""
        batch = min(self._schedule.batch, len(self._pairs.queries))
        per_epoch = len(self._pairs.queries) // batch
        order = np.random.default_rng([self._schedule.seed, number // per_epoch]).permutation(len(self._pairs.queries))
        return order[number % per_epoch * batch :][:batch]

    def _quantized(self, vectors: "torch.Tensor") -> "torch.Tensor":
        """What the codes of unit vectors stand for, again of unit length; the gradient passes straight through."""
        import torch

        if self._codec is None:
            raise AssertionError("bounds are chosen before the first step")
        unit = torch.nn.functional.normalize(vectors)
        low, high = torch.from_numpy(self._codec.low), torch.from_numpy(self._codec.high)
        cells = (high - low) / CELLS[self._goal.level]
        if self._goal.level == "binary":
            numbers = (unit > (low + high) / 2).float()
        else:
            numbers = ((unit - low) / cells).floor().clamp(0, TOP[self._goal.level])
        inside = unit.clamp(low, high)
        return torch.nn.functional.normalize(inside + (low + (numbers + 0.5) * cells - inside).detach())

    def codec_for(self, head: Floats) -> Codec:
        """Bounds for what a head makes of training passages."""
        some = self._pairs.passages[:: max(len(self._pairs.passages) // FITTED_ON, 1)]
        return fit(applied(head, some), self._goal.level, self._goal.scaling)

    def judge(self) -> None:
        """NDCG@10 of held-back queries among held-back passages, through the codec; keeps the head if it is the best yet."""
        head = self.head.detach().numpy().copy()
        codec = self.codec_for(head)
        _, first = np.unique(self._held.passage, return_index=True)
        passages, queries = applied(head, self._held.passages[first]), applied(head, self._held.queries)
        coded = [codec.decode(codec.encode(each)) for each in (queries, passages)]
        scores = normalized(coded[0] if self._goal.quantized_queries else queries) @ normalized(coded[1]).T
        own = np.searchsorted(self._held.passage[first], self._held.passage)
        rank = 1 + (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
        self.scores.append(float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()))
        if self.scores[-1] > max(self.scores[:-1], default=-1.0):
            self.best, self.best_step = head, self.done

    def keep(self, path: Path) -> None:
        """Write all of it, whole or not at all."""
        moments: dict[str, Any] = self.optimizer.state[self.head]
        arrays = {
            "head": self.head.detach().numpy(),
            "best": self.best,
            "first": moments["exp_avg"].numpy(),
            "second": moments["exp_avg_sq"].numpy(),
        }
        if self._codec is not None:
            arrays |= {"low": self._codec.low, "high": self._codec.high}
        told = {"key": self._key, "done": self.done, "best_step": self.best_step, "scores": self.scores}
        write_whole(path, save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, {"run": json.dumps(told)}))

    def resume(self, path: Path) -> None:
        """Take up what `keep` wrote, if it is of the same run; of another, it is begun anew."""
        import torch

        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("run", "{}"))
            if told.get("key") != self._key:
                return
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        self.done, self.best_step, self.scores = told["done"], told["best_step"], told["scores"]
        self.best = arrays["best"].numpy()
        with torch.no_grad():
            self.head.copy_(arrays["head"])
        state = {"step": torch.tensor(float(self.done)), "exp_avg": arrays["first"], "exp_avg_sq": arrays["second"]}
        self.optimizer.state[self.head] = state
        self._codec = Codec(self._goal.level, arrays["low"].numpy(), arrays["high"].numpy())


def _digest(values: Floats) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
