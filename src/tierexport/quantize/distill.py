"""Tunes a rounded model until its vectors are fp32's again: what stays in fp32 anyway, and the scales of blocks.

Biases and norms cost no byte more, and a scale is stored whatever its value; levels stay as they are. The
loss is ten times 1 - cosine of the pooled vectors plus the squared error of the tokens' states. No labels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.base.errors import MachineError
from tierexport.base.records import Text
from tierexport.base.stages import Stages
from tierexport.model.batches import prompt_for
from tierexport.quantize.gptq import Codes
from tierexport.quantize.layerwise import Rounded

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

STEPS = 100
SEGMENT = 20
"""Steps after which the held-back texts are looked at, and what was reached is kept on disk."""

PATIENCE = 2
"""Segments without progress on the held-back texts that end the tuning."""

BATCH = 24
MOST_TOKENS = 128
HELD_BACK = 10
"""Of so many texts, one is not tuned on."""

RATE = 5e-4
"""Adam's rate at the start; it falls to zero along a cosine."""

VECTOR_WEIGHT = 10.0

Features = Any
"""What sentence-transformers makes of a batch of texts."""


def distill(
    model: "SentenceTransformer",
    teacher: "SentenceTransformer",
    texts: Sequence[Text],
    rounded: Rounded,
    tunable: Sequence[str],
    stages: Stages,
    key: str,
    step: Callable[[int], None] = lambda _: None,
) -> Rounded:
    """`rounded` with scales and fp32 parameters tuned so that the vectors come nearer to the teacher's.

    `model` runs with the rounded weights, `tunable` names those of its parameters that the format keeps
    in fp32. The scales of K-quants, which are steps of a frame, stay. What is best on held-back texts is
    taken, at worst `rounded` as it is. Each segment is kept in `stages` under `key`; `step` hears the
    steps done. Runs on CUDA where there is one. Raises MachineError when its memory is too small.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for each in (model, teacher):
        each.to(device).requires_grad_(False)
    try:
        return _tuned(_Student(model, rounded, tunable), _Lesson(model, teacher, texts), rounded, stages, key, step)
    except torch.OutOfMemoryError as error:
        raise MachineError("too little GPU memory for tuning: set CUDA_VISIBLE_DEVICES= to tune on the CPU") from error


def _tuned(
    student: "_Student", lesson: "_Lesson", untuned: Rounded, stages: Stages, key: str, step: Callable[[int], None]
) -> Rounded:
    best, losses = untuned, [lesson.held_back_loss(student)]
    for segment in range(STEPS // SEGMENT):
        losses.append(_segment(student, lesson, segment, stages, key))
        step(SEGMENT)
        if not math.isfinite(losses[-1]):
            break
        if losses[-1] == min(losses):
            best = student.rounded()
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    return best


def _segment(student: "_Student", lesson: "_Lesson", segment: int, stages: Stages, key: str) -> float:
    """Tune for some steps, or take what an earlier run has reached by them; the loss on held-back texts after it."""

    def make(folder: Path) -> float:
        for step in range(segment * SEGMENT, (segment + 1) * SEGMENT):
            student.learn(lesson.loss(student, step), RATE * (1 + math.cos(math.pi * step / STEPS)) / 2)
        student.save(folder / "state.safetensors")
        return lesson.held_back_loss(student)

    folder = stages.run(f"tuned-{segment}", key, make)
    student.load(folder / "state.safetensors")
    return float(stages.notes(f"tuned-{segment}"))


class _Student:
    """A rounded model whose fp32 parameters and block scales can be tuned."""

    def __init__(self, model: "SentenceTransformer", rounded: Rounded, tunable: Sequence[str]) -> None:
        import torch

        self._model, self._rounded, self._device = model, rounded, model.device
        self._parameters = dict(model.transformers_model.named_parameters())
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._full = {name: names[id(parameter)] for name, parameter in self._parameters.items()}
        self._kept = {name: self._parameters[name].detach().clone().requires_grad_() for name in tunable}
        own = {name: codes for name, codes in rounded.codes.items() if codes.frames is None}
        self._ratios = {
            name: torch.ones_like(codes.scales, device=self._device).requires_grad_() for name, codes in own.items()
        }
        self._optimizer = torch.optim.Adam([*self._kept.values(), *self._ratios.values()])

    def outputs(self, features: Features) -> Features:
        """What the model makes of a batch with the parameters as they are now."""
        import torch

        return torch.func.functional_call(self._model, dict(self._overrides()), (dict(features),))

    def learn(self, loss: "torch.Tensor", rate: float) -> None:
        """One step of Adam."""
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def rounded(self) -> Rounded:
        """Codes with the scales as they are now, and the fp32 parameters."""
        import torch

        with torch.no_grad():
            scaled = {name: self._scaled(name) for name in self._ratios}
        codes = {
            name: Codes(each.grid, self._rounded.codes[name].levels, each.scales.cpu(), each.offsets.cpu(), None)
            for name, each in scaled.items()
        }
        kept = {name: values.detach().cpu().numpy().copy() for name, values in self._kept.items()}
        return Rounded({**self._rounded.codes, **codes}, self._rounded.places, kept)

    def save(self, path: Path) -> None:
        """Everything that the next step depends on."""
        from safetensors.torch import save_file

        parts = {}
        for name, tensor in self._tuned():
            parts[f"value/{name}"] = tensor.detach()
            for part, moment in self._optimizer.state[tensor].items():
                parts[f"{part}/{name}"] = moment
        save_file({name: each.contiguous() for name, each in parts.items()}, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        from safetensors.torch import load_file

        parts = load_file(path)
        for name, tensor in self._tuned():
            tensor.data.copy_(parts[f"value/{name}"])
            if f"step/{name}" not in parts:
                continue  # no text has reached it: a pooler that no vector comes from
            self._optimizer.state[tensor] = {
                part: parts[f"{part}/{name}"].to("cpu" if part == "step" else self._device)
                for part in ("step", "exp_avg", "exp_avg_sq")
            }

    def _tuned(self) -> "Iterator[tuple[str, torch.Tensor]]":
        yield from self._kept.items()
        yield from ((f"{name}/scales", ratio) for name, ratio in self._ratios.items())

    def _overrides(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Every tuned parameter, and every weight whose scales are tuned, by its name in the whole model."""
        for name, values in self._kept.items():
            yield self._full[name], values
        weights: dict[str, torch.Tensor] = {}
        for name in self._ratios:
            values = self._scaled(name).values()
            for place in self._rounded.places[name]:
                weight = weights.get(place.parameter, self._parameters[place.parameter].detach())
                weights[place.parameter] = place.put(weight, values)
        for name, weight in weights.items():
            yield self._full[name], weight

    def _scaled(self, name: str) -> Codes:
        """A tensor's codes with its scales tuned; the gradient takes their rounding for nothing (straight-through)."""
        codes, ratio = self._rounded.codes[name], self._ratios[name]
        scales = codes.scales.to(self._device) * ratio
        offsets = codes.offsets.to(self._device)
        if codes.grid.integer_offset:
            offsets = offsets * ratio
        stored = codes.grid.settle(scales.detach(), offsets.detach(), None)
        through = [wished + (found - wished).detach() for wished, found in zip((scales, offsets), stored, strict=True)]
        return Codes(codes.grid, codes.levels.to(self._device), through[0], through[1], None)


class _Lesson:
    """Texts in batches, in an order that a seed fixes, and what the teacher makes of them."""

    def __init__(self, model: "SentenceTransformer", teacher: "SentenceTransformer", texts: Sequence[Text]) -> None:
        self._teacher, self._model = teacher, model
        model.max_seq_length = min(model.max_seq_length or MOST_TOKENS, MOST_TOKENS)
        prompted = [prompt_for(teacher.prompts, text.kind) + text.text for text in texts]
        held = prompted[::HELD_BACK]
        seen = [text for row, text in enumerate(prompted) if row % HELD_BACK] or prompted
        generator = np.random.default_rng(0)
        rounds = [generator.permutation(len(seen)) for _ in range(STEPS * BATCH // len(seen) + 1)]
        order = np.concatenate(rounds)[: STEPS * BATCH].reshape(STEPS, BATCH)
        self._batches = [[seen[row] for row in rows] for rows in order]
        self._held_back = [held[first : first + BATCH] for first in range(0, len(held), BATCH)]

    def loss(self, student: _Student, step: int) -> "torch.Tensor":
        """What a step's batch says."""
        import torch

        found, wished, mask = self._both(student, self._batches[step])
        apart = (found["token_embeddings"] - wished["token_embeddings"])[mask]
        loss: torch.Tensor = VECTOR_WEIGHT * _turned(found, wished).mean() + apart.square().mean()
        return loss

    def held_back_loss(self, student: _Student) -> float:
        """Mean 1 - cosine of the pooled vectors over the texts that are not tuned on."""
        import torch

        with torch.no_grad():
            turned = [_turned(*self._both(student, batch)[:2]) for batch in self._held_back]
        return float(torch.cat(turned).mean())

    def _both(self, student: _Student, texts: Sequence[str]) -> "tuple[Features, Features, torch.Tensor]":
        """What student and teacher make of texts, and which tokens are real."""
        import torch

        features = {
            name: each.to(self._model.device)
            for name, each in self._model.preprocess(list(texts)).items()
            if torch.is_tensor(each)
        }
        with torch.no_grad():
            wished = self._teacher(dict(features))
        return student.outputs(features), wished, features["attention_mask"].bool()


def _turned(found: Features, wished: Features) -> "torch.Tensor":
    """1 - cosine of the pooled vectors, text by text."""
    import torch

    return 1 - torch.nn.functional.cosine_similarity(found["sentence_embedding"], wished["sentence_embedding"])
