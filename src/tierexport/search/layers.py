"""What each layer does to its input, measured on the hidden states of fp32: a cheap hint at its sensitivity."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tierexport.base.records import Floats, Text
from tierexport.metrics.similarity import normalized
from tierexport.model.batches import batches, prompted, tokenized

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LARGEST = 4
"""How many dimensions count as the few largest."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What transformers' encoders take of a batch's features."""

MOST_WORDS = 2000
"""Tokens whose neighbours are looked for, so that the similarities stay small."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerReading:
    """One layer's output over all tokens of the texts.

    `rewrite`: mean of ‖output − input‖ / ‖input‖. `same_word` and `same_text`: of words that occur in
    several texts, the share whose nearest neighbour is that word in another text, and the share whose
    nearest is another word of its own text. `largest_share`: share of the squared norm in the four
    largest dimensions (massive activations; Sun et al. 2024). `anisotropy`: mean cosine of tokens of
    different texts (Ethayarajh 2019).
    """

    layer: int
    rewrite: float
    same_word: float
    same_text: float
    largest_share: float
    anisotropy: float


def read_layers(model: "SentenceTransformer", texts: Sequence[Text]) -> tuple[LayerReading, ...]:
    """Read every layer over the texts, each with its prompt."""
    tokens = _Tokens(model, prompted(model.prompts, texts))
    states = tokens.states()
    return tuple(_read(layer, before, after, tokens) for layer, (before, after) in enumerate(itertools.pairwise(states)))


def binding_layer(readings: Sequence[LayerReading]) -> int | None:
    """The first layer after which a word is nearer to its text than to itself elsewhere; None if it never is."""
    return next((each.layer for each in readings if each.same_text > each.same_word), None)


class _Tokens:
    """Every real token of the texts: which text, which word, and its state after each layer."""

    def __init__(self, model: "SentenceTransformer", texts: Sequence[str]) -> None:
        self._model = model
        found = tokenized(model, texts, offsets=True)
        self.batches = list(batches(model, texts, [len(ids) for ids in found["input_ids"]]))
        words = [_words(text, found.word_ids(row), found["offset_mapping"][row]) for row, text in enumerate(texts)]
        order = [row for batch in self.batches for row in batch.rows]
        self.texts = np.array([row for row in order for _ in words[row]])
        self.words = np.array([word for row in order for word in words[row]])

    def states(self) -> list[Floats]:
        """Float32 (tokens, width) before the first layer and after each."""
        import torch

        parts: list[list[Floats]] = []
        with torch.inference_mode():
            for batch in self.batches:
                inputs = {name: batch.features[name] for name in INPUTS if name in batch.features}
                hidden = self._model.transformers_model(**inputs, output_hidden_states=True).hidden_states
                parts.append([each[batch.mask].float().numpy() for each in hidden])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def shared(self) -> npt.NDArray[np.int64]:
        """Rows of whole words that occur in several texts, the first few thousand."""
        seen = {(word, text) for word, text in zip(self.words, self.texts, strict=True) if len(word) > 1}
        texts_of = Counter(word for word, _ in seen)
        return np.array([row for row, word in enumerate(self.words) if texts_of[word] > 1][:MOST_WORDS], np.int64)


def _words(text: str, numbers: Sequence[int | None], spans: Sequence[tuple[int, int]]) -> list[str]:
    """The whole word that each token belongs to, in lower case; "" for special tokens."""
    ends: dict[int, tuple[int, int]] = {}
    for number, (start, end) in zip(numbers, spans, strict=True):
        if number is not None:
            first, last = ends.get(number, (start, end))
            ends[number] = (min(first, start), max(last, end))
    return ["" if number is None else text[slice(*ends[number])].lower() for number in numbers]


def _read(layer: int, before: Floats, after: Floats, tokens: _Tokens) -> LayerReading:
    """The reading of a layer from its input and output, float32 (tokens, width) each."""
    unit = normalized(after)
    same_word, same_text = _neighbours(unit, tokens)
    squared = np.square(after.astype(np.float64))
    return LayerReading(
        layer=layer,
        rewrite=float(_ratio(np.linalg.norm(after - before, axis=1), np.linalg.norm(before, axis=1)).mean()),
        same_word=same_word,
        same_text=same_text,
        largest_share=float(_ratio(np.sort(squared, 1)[:, -LARGEST:].sum(1), squared.sum(1)).mean()),
        anisotropy=_across_texts(unit, tokens.texts),
    )


def _ratio(values: npt.NDArray[Any], by: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`values / by`, where a `by` of zero counts as a tiny number."""
    found: npt.NDArray[Any] = values / np.maximum(by, 1e-12)
    return found


def _neighbours(unit: Values, tokens: _Tokens) -> tuple[float, float]:
    """Of shared words, the shares whose nearest token is the word elsewhere, and another word of the text."""
    rows = tokens.shared()
    if not len(rows):
        return float("nan"), float("nan")
    nearest = np.concatenate(list(_nearest(unit.astype(np.float32), rows)))
    same_text = tokens.texts[nearest] == tokens.texts[rows]
    same_word = tokens.words[nearest] == tokens.words[rows]
    return float((same_word & ~same_text).mean()), float((same_text & ~same_word).mean())


def _nearest(unit: Floats, rows: npt.NDArray[np.int64], chunk: int = 512) -> Iterator[npt.NDArray[np.int64]]:
    """The row of the nearest other token by cosine for each of some tokens, chunk after chunk."""
    for start in range(0, len(rows), chunk):
        here = rows[start : start + chunk]
        similar = unit[here] @ unit.T
        similar[np.arange(len(here)), here] = -np.inf
        yield similar.argmax(1)


def _across_texts(unit: Values, texts: npt.NDArray[Any]) -> float:
    """Mean cosine of two tokens of different texts, from the sums of the texts' unit vectors."""
    sums = np.stack([unit[texts == text].sum(0) for text in np.unique(texts)])
    counts = np.array([(texts == text).sum() for text in np.unique(texts)])
    pairs = counts.sum() ** 2 - (counts**2).sum()
    return float(((sums.sum(0) ** 2).sum() - (sums**2).sum()) / pairs) if pairs else float("nan")
