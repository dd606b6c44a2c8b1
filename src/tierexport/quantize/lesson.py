"""What a rounded model is tuned by: batches of texts, and how far its outputs are from the fp32 model's.

The loss is VECTOR_WEIGHT · (1 - cosine of the pooled vectors), averaged over texts, plus the mean squared error of the
tokens' states. No labels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from tierexport.base.records import Text
from tierexport.base.workers import on_cores
from tierexport.model.batches import features_of, prompted, within
from tierexport.quantize.student import Features, Student

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH = 24
PARTS = 4
"""A batch is divided into so many parts of texts of like length, whatever the number of workers, so that sums are the same."""

MOST_TOKENS = 128
HELD_BACK = 10
"""Of so many texts, one is not tuned on."""

VECTOR_WEIGHT = 10.0


def unread(model: "SentenceTransformer", texts: Sequence[Text], tokens: int) -> list[Text]:
    """Texts to tune on, where rounding has read so many tokens of `texts`: as many of the others, or the same where the others
    are less than half as many.

    What rounding has read it fits better than other texts, so that nothing would seem to be gained.
    """
    read = within(model, texts, tokens)
    others = within(model, left, tokens) if (left := [text for text in texts if text not in set(read)]) else []
    return others if len(others) >= len(read) / 2 else read


class Lesson:
    """Texts in batches, in an order that a seed fixes, and the teacher's outputs for them."""

    def __init__(self, model: "SentenceTransformer", teacher: "SentenceTransformer", texts: Sequence[Text], steps: int) -> None:
        """`model` is the student's, whose texts are cut at MOST_TOKENS from now on; `steps`: how many batches to make."""
        self._teacher, self._model = teacher, model
        model.max_seq_length = min(model.max_seq_length or MOST_TOKENS, MOST_TOKENS)
        read = prompted(teacher.prompts, texts)
        held = read[::HELD_BACK]
        seen = [text for row, text in enumerate(read) if row % HELD_BACK] or read
        generator = np.random.default_rng(0)
        epochs = [generator.permutation(len(seen)) for _ in range(steps * BATCH // len(seen) + 1)]
        order = np.concatenate(epochs)[: steps * BATCH].reshape(steps, BATCH)
        self._batches = [[seen[row] for row in rows] for rows in order]
        self._held_back = [held[first : first + BATCH] for first in range(0, len(held), BATCH)]

    def losses(self, student: Student, step: int) -> list[Callable[[], torch.Tensor]]:
        """What computes the loss of a step's batch, a scalar with its gradient, as parts of a sum."""
        texts = sorted(self._batches[step], key=len)
        size = BATCH // PARTS
        parts = [self._features(texts[first : first + size]) for first in range(0, BATCH, size)]
        tokens = sum(int(features["attention_mask"].sum()) for features in parts)
        return [partial(self._loss, student, features, tokens) for features in parts]

    def _loss(self, student: Student, features: Features, tokens: int) -> torch.Tensor:
        """What some texts add to the loss of a batch that has so many tokens."""
        found, wished = self._outputs(student, features)
        apart = (found["token_embeddings"] - wished["token_embeddings"])[features["attention_mask"].bool()]
        states: torch.Tensor = apart.square().sum() / (tokens * apart.shape[-1])
        return states + VECTOR_WEIGHT * _one_less_cosine(found, wished).sum() / BATCH

    def held_back_loss(self, student: Student) -> float:
        """Mean 1 - cosine of the pooled vectors over the texts that are not tuned on."""

        def losses(texts: Sequence[str]) -> torch.Tensor:
            with torch.no_grad():
                return _one_less_cosine(*self._outputs(student, self._features(texts)))

        student.put()
        return float(torch.cat(on_cores(losses, self._held_back)).mean())

    def _features(self, texts: Sequence[str]) -> Features:
        return {name: each for name, each in features_of(self._model, texts).items() if torch.is_tensor(each)}

    def _outputs(self, student: Student, features: Features) -> tuple[Features, Features]:
        """The student's and the teacher's outputs for a batch."""
        with torch.no_grad():
            wished = self._teacher(dict(features))
        return student.outputs(features), wished


def _one_less_cosine(found: Features, wished: Features) -> torch.Tensor:
    """1 - cosine of the pooled vectors, text by text, float32 (texts,)."""
    return 1 - torch.nn.functional.cosine_similarity(found["sentence_embedding"], wished["sentence_embedding"])
