"""How texts are prompted, tokenized and put into batches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


BATCH_TOKENS = 2048
"""Padded tokens per batch, so that short texts share one and long ones don't fill the memory."""


def prompt_for(prompts: Mapping[str, str], kind: str) -> str:
    """The prompt a text of kind "query" or "passage" is prefixed with; "" where the model has none."""
    names = {"query": ("query",), "passage": ("document", "passage", "corpus")}[kind]
    return next((prompts[name] for name in names if prompts.get(name)), "")


def token_ids(model: "SentenceTransformer", texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token ids of each text, special tokens included, cut as the model cuts them."""
    if not texts:
        return ()
    found = model.tokenizer(list(texts), truncation=True, padding=False, max_length=model.max_seq_length)["input_ids"]
    return tuple(tuple(ids) for ids in found)


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


def real_rows(inputs: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """The rows of real tokens: by the mask, or all where the model has dropped padding or pooled."""
    if inputs.dim() == 3 and inputs.shape[:2] == mask.shape:
        return inputs[mask]
    return inputs.reshape(-1, inputs.shape[-1])
