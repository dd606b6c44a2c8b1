"""Sentence pairs with human scores."""

import math
from dataclasses import dataclass
from pathlib import Path

from tierexport.base.errors import DataError
from tierexport.datasets.textfiles import read_lines


@dataclass(frozen=True)
class SentencePairs:
    """Pairs in the order of their file, whose name is theirs: their scores, and their sentences, pair after pair."""

    name: str
    scores: tuple[float, ...]
    sentences: tuple[str, ...]


def read_sts(path: Path) -> SentencePairs:
    """Sentence pairs with human scores: a TSV of score, sentence, sentence, under a header or not.

    Raises DataError naming the line that is not one.
    """
    scores: list[float] = []
    sentences: list[str] = []
    for number, line in enumerate(read_lines(path), 1):
        fields = line.rstrip("\r\n").split("\t")
        try:
            score, one, other = float(fields[0]), *fields[1:3]
        except ValueError:
            if number == 1:
                continue
            score, one, other = math.nan, "", ""
        if not math.isfinite(score):
            raise DataError(f"{path}, line {number} is not SCORE, SENTENCE, SENTENCE with tabs between: {line[:80]!r}")
        scores.append(score)
        sentences += [one, other]
    if len(scores) < 3:
        raise DataError(f"{path} holds {len(scores)} sentence pairs: a rank correlation needs some")
    return SentencePairs(path.name, tuple(scores), tuple(sentences))
