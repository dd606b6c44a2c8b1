"""Agreement with fp32 by the length of texts, as far as a model is made for long ones."""

from itertools import cycle, islice

import numpy as np

from tierexport.artifact.verdicts import LengthVerdict
from tierexport.datasets.beir import read_beir
from tierexport.datasets.textfiles import BUILTIN
from tierexport.metrics.similarity import cosines
from tierexport.model.batches import token_ids
from tierexport.model.reference import Reference
from tierexport.verify.opened import OpenArtifact

LENGTHS = {512: 8, 2048: 2, 8192: 1}
"""Tokens, and how many texts have so many: fewer of those that take long."""

FILLED = 0.96
"""Share of a length that a text is cut to by its words, so that prompt and special tokens have room."""


def by_length(artifact: OpenArtifact) -> tuple[LengthVerdict, ...]:
    """The cosines to fp32's vectors of texts of each length that the model reads whole. Raises ArtifactError."""
    return tuple(
        _judged(artifact, length, long_texts(artifact.reference, length, count))
        for length, count in LENGTHS.items()
        if length <= artifact.reference.max_tokens
    )


def _judged(artifact: OpenArtifact, length: int, texts: list[str]) -> LengthVerdict:
    name = f"{length} tokens"
    reference, found = artifact.reference.encode(name, "passage", texts), artifact.encode(name, "passage", texts)
    near = cosines(np.asarray(reference.vectors), np.asarray(found.vectors))
    return LengthVerdict(int(np.mean(reference.lengths)), len(texts), float(near.mean()), float(near.min()))


def long_texts(reference: Reference, length: int, count: int) -> list[str]:
    """Texts of nearly so many tokens, of the built-in retrieval set's documents one after another, each from another one on."""
    documents = read_beir(BUILTIN / "retrieval").documents
    found = []
    for number in range(count):
        words = list(islice(cycle(" ".join(documents[number * len(documents) // count :]).split()), length))
        tokens = len(token_ids(reference.model("cpu"), [" ".join(words[:256])])[0])
        found.append(" ".join(words[: int(FILLED * length * 256 / tokens)]))
    return found
