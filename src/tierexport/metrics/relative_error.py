"""The change of vectors in units of the model's own spread, so that figures of different models can be compared."""

from dataclasses import dataclass

import numpy as np

from tierexport.base.records import Floats
from tierexport.metrics.similarity import COSINE, Doubles, Similarity


@dataclass(frozen=True)
class Changes:
    """How far texts' vectors moved: squared distances (texts,), and the reference's about their mean (texts, dimensions)."""

    squared: Doubles
    centred: Doubles

    @staticmethod
    def between(reference: Floats, found: Floats, similarity: Similarity = COSINE) -> "Changes":
        """Of vectors (texts, dimensions) as the model compares them: at unit length, unless lengths count."""
        a, b = similarity.prepared(reference), similarity.prepared(found)
        return Changes(np.square(b - a).sum(1), a - a.mean(0))

    @property
    def relative_error(self) -> float:
        """The mean squared change over the mean squared distance between two texts; not finite where all texts are alike."""
        texts = len(self.squared)
        return float(self.relative_errors(np.full((1, texts), 1 / texts))[0])

    def relative_errors(self, shares: Doubles) -> Doubles:
        """The same with texts weighted, (draws,); `shares` is (draws, texts), and each row sums to 1."""
        lengths = np.square(self.centred).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = 2 * (shares @ lengths - np.square(shares @ self.centred).sum(1)) / (1 - np.square(shares).sum(1))
            found: Doubles = shares @ self.squared / apart
        return found
