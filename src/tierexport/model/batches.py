"""How texts are prompted, tokenized and put into batches; every pass of the fp32 model over texts does it by these functions.

A tokenizer and a model are sentence-transformers' own; nothing is cut or padded here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tierexport.base.records import Text
from tierexport.datasets.calibration import spread

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

BATCH_TOKENS = 2048
"""Padded tokens per batch, so that short texts share one and long ones don't fill the memory."""


@dataclass(frozen=True)
class Batch:
    """Some of a sequence of texts as a model takes them: their rows in the sequence, and their features on its device."""

    rows: Sequence[int]
    features: Mapping[str, Any]

    @property
    def mask(self) -> "torch.Tensor":
        """Which tokens are real, bool (texts, padded length)."""
        mask: torch.Tensor = self.features["attention_mask"].bool()
        return mask


def prompt_for(prompts: Mapping[str, str], kind: str) -> str:
    """The prompt a text of kind "query" or "passage" is prefixed with; "" where the model has none."""
    names = {"query": ("query",), "passage": ("document", "passage", "corpus")}[kind]
    return next((prompts[name] for name in names if prompts.get(name)), "")


def prompted(prompts: Mapping[str, str], texts: Iterable[Text]) -> list[str]:
    """Texts, each prefixed with the prompt of its kind."""
    return [prompt_for(prompts, text.kind) + text.text for text in texts]


def tokenized(model: "SentenceTransformer", texts: Sequence[str], offsets: bool = False) -> Any:
    """What the tokenizer makes of at least one text, special tokens included, cut as the model cuts it, not padded.

    `offsets`: with the place of each token in its text.
    """
    return model.tokenizer(
        list(texts), truncation=True, padding=False, max_length=model.max_seq_length, return_offsets_mapping=offsets
    )


def token_ids(model: "SentenceTransformer", texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token ids of each text, special tokens included, cut as the model cuts them."""
    return tuple(tuple(ids) for ids in tokenized(model, texts)["input_ids"]) if texts else ()


def within(model: "SentenceTransformer", texts: Sequence[Text], tokens: int) -> list[Text]:
    """Texts that have about so many tokens, prompts included; all of them where they have no more.

    Languages get equal shares as far as they have as much; of each, texts are taken at even distances.
    """
    lengths = np.array([len(ids) for ids in token_ids(model, prompted(model.prompts, texts))])
    languages = np.array([text.language for text in texts])
    chosen: list[int] = []
    by_size = sorted({text.language for text in texts}, key=lambda each: (int(lengths[languages == each].sum()), each))
    for left, language in zip(range(len(by_size), 0, -1), by_size, strict=True):
        rows = np.flatnonzero(languages == language).tolist()
        share = (tokens - int(lengths[chosen].sum())) // left
        chosen += spread(rows, max(len(rows) * share // max(int(lengths[rows].sum()), 1), 1))
    return [texts[row] for row in sorted(chosen)]


def length_sorted(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, each padded to at most `budget` tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def features_of(model: "SentenceTransformer", texts: Sequence[str], prompt: str = "") -> dict[str, Any]:
    """What the model takes of texts, padded to the longest, on the model's device."""
    found = model.preprocess(list(texts), prompt=prompt or None)
    return {name: value.to(model.device) if hasattr(value, "to") else value for name, value in found.items()}


def batches(
    model: "SentenceTransformer",
    texts: Sequence[str],
    lengths: Sequence[int] | None = None,
    prompt: str = "",
    budget: int = BATCH_TOKENS,
) -> Iterator[Batch]:
    """Texts in batches of like length, longest first, made one at a time.

    `lengths`: how long each text is, in the units of `budget`; where it is None, in tokens, without the prompt.
    """
    lengths = [len(ids) for ids in token_ids(model, texts)] if lengths is None else lengths
    for rows in length_sorted(lengths, budget):
        yield Batch(rows, features_of(model, [texts[row] for row in rows], prompt))


def original_order(rows: Iterable[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Where each text's result lies among those of all batches, int64 (texts,); `rows`: those of each batch, in turn."""
    return np.argsort([row for each in rows for row in each])


def real_rows(inputs: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """The rows of real tokens, (tokens, columns): by the mask, or all where the model has dropped padding or pooled."""
    if inputs.dim() == 3 and inputs.shape[:2] == mask.shape:
        return inputs[mask]
    return inputs.reshape(-1, inputs.shape[-1])
