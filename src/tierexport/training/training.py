"""Training a model's vectors to survive quantization, whatever of the model it is that is trained.

Straight-through estimation (Bengio et al. 2013, arXiv 1308.3432): going forward, vectors are what their codes stand for;
going back, the gradient passes as if they had not been coded, where they lie within the range. Two losses share the work:
the contrastive one, by which each query has to find its own passage among those of the batch, and the divergence from how
the fp32 model sees the same passages (Kullback and Leibler), which needs no pairs to be right and keeps what it knew.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tierexport.base.errors import VectorError
from tierexport.base.files import write_whole
from tierexport.base.records import Floats
from tierexport.base.stages import stage_key
from tierexport.metrics.similarity import normalized
from tierexport.vectors.codecs import TOP, Codec
from tierexport.vectors.scaling import fit

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]

REFITTED = 100
"""Steps after which the codec's bounds are chosen anew, for the vectors move."""

FITTED_ON = 512
"""Passages that bounds are chosen on while training; at its end it is four times as many."""

HELD_BACK = 10
"""Of so many passages, one is not trained on, nor are its queries: the best weights are chosen on them."""

JUDGED_ON = 2000
"""Held-back queries that a checkpoint is judged on, or up to twice as many, so that its cost does not grow with the pairs."""

WARM = 20
"""Steps in which the rate rises; from then on it falls to zero."""


@dataclass(frozen=True)
class Goal:
    """What is trained for: the level, how bounds are chosen, whether queries are quantized, too, and how many times as many
    dimensions a head puts out.
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
    which passage each query asks for, int64 (pairs,).
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


def train(
    trainee: Trainee, pairs: Pairs, goal: Goal, schedule: Schedule, state: Path,
    step: Callable[[int, float, float], None] = lambda *_: None,
) -> Trained:  # fmt: skip
    """The weights that held-back pairs like best, the untrained ones among the candidates; the trainee is left with them.

    `state` is a file that keeps what a later run needs to go on, in the same steps to the same weights; `step` hears the
    step, the loss and the score of every checkpoint. Raises VectorError for too few pairs.
    """
    if len(pairs.passages) < 10 * HELD_BACK:
        raise VectorError(f"{len(pairs.passages)} passages are too few to train and to judge on: {10 * HELD_BACK} at least")
    with _threads(trainee.threads):
        run = _Run(trainee, pairs, goal, schedule)
        run.resume(state)
        while run.done < schedule.steps:
            loss = run.advance(min(schedule.every, schedule.steps - run.done))
            run.judge()
            run.keep(state)
            step(run.done, loss, run.scores[-1])
        run.load(run.best)
        return Trained(run.best, run.fitted(4 * FITTED_ON), run.best_step, tuple(run.scores))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, torch uses so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """A trainee on its way, with all that decides where it goes next."""

    def __init__(self, trainee: Trainee, pairs: Pairs, goal: Goal, schedule: Schedule) -> None:
        import torch

        self._trainee, self._pairs, self._goal, self._schedule = trainee, pairs, goal, schedule
        held = pairs.passage % HELD_BACK == 0
        self._rows, self._held = np.flatnonzero(~held), _spread(np.flatnonzero(held), JUDGED_ON)
        self.optimizer = torch.optim.Adam(list(trainee.weights.values()), schedule.rate)
        self.done, self.best_step = 0, 0
        self.best: dict[str, Floats] = {}
        self.scores: list[float] = []
        self._codec: Codec | None = None
        arrays = (pairs.queries, pairs.passages, pairs.passage)
        seen = [hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for each in arrays]
        shapes = {name: [*each.shape, str(each.device)] for name, each in trainee.weights.items()}
        self._key = stage_key(__name__, asdict(goal), asdict(schedule), shapes, trainee.threads, torch.__version__, seen)

    def advance(self, steps: int) -> float:
        """Take some steps; the mean of their losses."""
        if not self.scores:
            self.judge()
        losses = []
        for number in range(self.done, self.done + steps):
            if self._codec is None or number % REFITTED == 0:
                self._codec = self.fitted(FITTED_ON)
            losses.append(self._step(number, self._codec))
        self.done += steps
        return float(np.mean(losses))

    def _step(self, number: int, codec: Codec) -> float:
        import torch

        rows = self._batch(number)
        passages, own = np.unique(self._pairs.passage[rows], return_inverse=True)
        found = self._quantized(self._trainee.embed("passage", passages), codec)
        asked = self._trainee.embed("query", rows)
        asked = self._quantized(asked, codec) if self._goal.quantized_queries else torch.nn.functional.normalize(asked)
        scores = asked @ found.T / self._schedule.temperature
        expected = _product(self._pairs.queries[rows], self._pairs.passages[passages]).to(scores.device)
        loss = self._loss(scores, expected / self._schedule.temperature, torch.from_numpy(own).to(scores.device))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._trainee.weights.values()), 1.0)
        self.optimizer.param_groups[0]["lr"] = self._rate(number)
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, scores: "torch.Tensor", expected: "torch.Tensor", own: "torch.Tensor") -> "torch.Tensor":
        from torch.nn import functional

        contrast = functional.cross_entropy(scores, own)
        ours, theirs = (functional.log_softmax(each, 1) for each in (scores, expected))
        divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return self._schedule.contrast * contrast + (1 - self._schedule.contrast) * divergence

    def _rate(self, number: int) -> float:
        return self._schedule.rate * min(1, (number + 1) / WARM) * (1 - number / self._schedule.steps)

    def _batch(self, number: int) -> Rows:
        """The pairs of a step: each epoch a new order, from the seed alone, so that a step can be taken at any time."""
        batch = min(self._schedule.batch, len(self._rows))
        per_epoch = len(self._rows) // batch
        order = np.random.default_rng([self._schedule.seed, number // per_epoch]).permutation(self._rows)
        return order[number % per_epoch * batch :][:batch]

    def _quantized(self, vectors: "torch.Tensor", codec: Codec) -> "torch.Tensor":
        """What the codes of unit vectors stand for, again of unit length; the gradient passes straight through."""
        import torch

        unit = torch.nn.functional.normalize(vectors)
        arrays = (codec.low, codec.high, codec.cells, *codec.line)
        low, high, cells, scale, offset = (torch.from_numpy(each).to(unit.device) for each in arrays)
        if codec.level == "binary":
            numbers = (unit > (low + high) / 2).float()
        else:
            numbers = ((unit - low) / cells).floor().clamp(0, TOP[codec.level])
        inside = unit.clamp(low, high)
        return torch.nn.functional.normalize(inside + (numbers * scale + offset - inside).detach())

    def fitted(self, count: int) -> Codec:
        """Bounds for what the weights make of so many training passages."""
        some = _spread(np.unique(self._pairs.passage[self._rows]), count)
        codec = fit(self._unit("passage", some), self._goal.level, self._goal.scaling)
        return replace(codec, asymmetric=not self._goal.quantized_queries)

    def _unit(self, kind: str, rows: Rows) -> Floats:
        import torch

        with torch.no_grad():
            return normalized(self._trainee.embed(kind, rows).cpu().numpy()).astype(np.float32)

    def judge(self) -> None:
        """NDCG@10 of held-back queries among held-back passages, through the codec; keeps the weights if they are the best."""
        codec = self.fitted(FITTED_ON)
        numbers, own = np.unique(self._pairs.passage[self._held], return_inverse=True)
        passages = codec.restored(self._unit("passage", numbers))
        queries = self._unit("query", self._held)
        queries = codec.restored(queries) if self._goal.quantized_queries else queries
        scores = _product(normalized(queries), normalized(passages)).numpy()
        its = scores[np.arange(len(own)), own][:, None]
        rank = 1 + (scores > its).sum(1) + ((scores == its).sum(1) - 1) / 2  # of equals, half come first: codes collide
        self.scores.append(float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()))
        if self.scores[-1] > max(self.scores[:-1], default=-1.0):
            self.best_step = self.done
            self.best = {name: each.detach().cpu().numpy().copy() for name, each in self._trainee.weights.items()}

    def load(self, weights: Mapping[str, Any]) -> None:
        """Give the trainee these weights."""
        import torch

        with torch.no_grad():
            for name, each in self._trainee.weights.items():
                each.copy_(torch.as_tensor(weights[name]))

    def keep(self, path: Path) -> None:
        """Write all of it, whole or not at all."""
        arrays = {f"best.{name}": each for name, each in self.best.items()}
        for name, each in self._trainee.weights.items():
            arrays[f"now.{name}"] = each.detach().cpu().numpy()
            moments = self.optimizer.state[each]  # empty for what no vector depends on, such as a pooler that isn't used
            arrays |= {f"{moment}.{name}": moments[moment].cpu().numpy() for moment in MOMENTS if moment in moments}
        if self._codec is not None:
            arrays |= {"low": self._codec.low, "high": self._codec.high}
        told = {"key": self._key, "done": self.done, "best_step": self.best_step, "scores": self.scores}
        write_whole(path, save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, {"run": json.dumps(told)}))

    def resume(self, path: Path) -> None:
        """Take up what `keep` wrote, if it is of the same run; of another, or where it is damaged, it is begun anew."""
        import torch

        if not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {}).get("run", "{}"))
                if told.get("key") != self._key:
                    return
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, ValueError):
            return
        self.done, self.best_step, self.scores = told["done"], told["best_step"], told["scores"]
        self.best = {name: arrays[f"best.{name}"].numpy() for name in self._trainee.weights}
        self.load({name: arrays[f"now.{name}"] for name in self._trainee.weights})
        for name, each in self._trainee.weights.items():
            moments = {moment: arrays[f"{moment}.{name}"].to(each.device) for moment in MOMENTS if f"{moment}.{name}" in arrays}
            if moments:
                self.optimizer.state[each] = {"step": torch.tensor(float(self.done)), **moments}
        self._codec = Codec(self._goal.level, arrays["low"].numpy(), arrays["high"].numpy())


def _product(queries: npt.NDArray[Any], passages: npt.NDArray[Any]) -> "torch.Tensor":
    """Dot products (queries, passages) on as many threads as torch may use; numpy's own threads can't be counted."""
    import torch

    return torch.from_numpy(queries) @ torch.from_numpy(passages).T


def _spread(rows: Rows, count: int) -> Rows:
    """Between so many of them and twice as many, at even distances; all where there are fewer."""
    return rows[:: max(len(rows) // count, 1)]


MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each weight."""
