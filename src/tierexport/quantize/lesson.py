"""What a rounded model is tuned by: batches of texts, and how far its outputs are from the fp32 model's.

The loss is VECTOR_WEIGHT · (1 - cosine of the pooled vectors), averaged over texts, plus the mean squared error of the
tokens' states. No labels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tierexport.base.records import Text
from tierexport.model.batches import features_of, prompted
from tierexport.quantize.student import Features, Student

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH = 24
MOST_TOKENS = 128
HELD_BACK = 10
"""Of so many texts, one is not tuned on."""

VECTOR_WEIGHT = 10.0


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

    def loss(self, student: Student, step: int) -> torch.Tensor:
        """The loss of a step's batch, a scalar with its gradient."""
        found, wished, mask = self._outputs(student, self._batches[step])
        apart = (found["token_embeddings"] - wished["token_embeddings"])[mask]
        loss: torch.Tensor = VECTOR_WEIGHT * _one_less_cosine(found, wished).mean() + apart.square().mean()
        return loss

    def held_back_loss(self, student: Student) -> float:
        """Mean 1 - cosine of the pooled vectors over the texts that are not tuned on."""
        with torch.no_grad():
            losses = [_one_less_cosine(*self._outputs(student, batch)[:2]) for batch in self._held_back]
        return float(torch.cat(losses).mean())

    def _outputs(self, student: Student, texts: Sequence[str]) -> tuple[Features, Features, torch.Tensor]:
        """The student's and the teacher's outputs for texts, and which tokens are real, bool (texts, padded length)."""
        features = {name: each for name, each in features_of(self._model, texts).items() if torch.is_tensor(each)}
        with torch.no_grad():
            wished = self._teacher(dict(features))
        return student.outputs(features), wished, features["attention_mask"].bool()


def _one_less_cosine(found: Features, wished: Features) -> torch.Tensor:
    """1 - cosine of the pooled vectors, text by text, float32 (texts,)."""
    return 1 - torch.nn.functional.cosine_similarity(found["sentence_embedding"], wished["sentence_embedding"])
