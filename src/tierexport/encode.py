"""The fp32 reference: the source model as sentence-transformers runs it, in faster batches.

Pooling, prompts, truncation, Dense heads and normalisation are sentence-transformers' own, so a
vector here differs from its `encode` by rounding alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tierexport.errors import SourceError
from tierexport.libraries import import_sentence_transformers
from tierexport.records import Encoded, Floats, Source
from tierexport.source import modules

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_TOKENS = 2048
"""Padded tokens per batch: on CPU larger batches were slower (docs/log.md)."""


def open_model(source: Source, device: str = "cpu") -> "SentenceTransformer":
    """The source model in fp32, in evaluation mode. Raises SourceError when it can't be loaded."""
    st = import_sentence_transformers()
    import torch

    options = {"model_kwargs": {"dtype": torch.float32}, "device": device, "local_files_only": True}
    try:
        if modules(source.path):
            model = st.SentenceTransformer(str(source.path), **options)
        else:
            transformer = st.models.Transformer(str(source.path), model_args={"dtype": torch.float32})
            pooling = st.models.Pooling(transformer.get_embedding_dimension(), pooling_mode=source.pooling)
            model = st.SentenceTransformer(modules=[transformer, pooling, st.models.Normalize()], device=device)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise SourceError(f"{source.path}: sentence-transformers can't load this model: {error}") from error
    if source.max_tokens:
        model.max_seq_length = source.max_tokens
    model.prompts.update(source.prompts)
    model.eval()
    return model


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


def encode(model: "SentenceTransformer", texts: Sequence[str], prompt: str = "") -> Encoded:
    """Token ids and float32 vectors (texts, dimensions) of `texts`, each prefixed with `prompt`."""
    import torch

    tokens = token_ids(model, [prompt + text for text in texts])
    vectors: Floats = np.zeros((len(texts), 0), np.float32)
    with torch.inference_mode():
        for batch in length_sorted([len(ids) for ids in tokens]):
            features = model.preprocess([texts[index] for index in batch], prompt=prompt or None)
            features = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in features.items()}
            found = model(features)["sentence_embedding"].float().cpu().numpy()
            if not vectors.size:  # a folder may state another width than its model has
                vectors = np.zeros((len(texts), found.shape[1]), np.float32)
            vectors[batch] = found
    return Encoded(tokens, vectors)
