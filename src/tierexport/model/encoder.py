"""The fp32 reference: the source model as sentence-transformers runs it, in batches of like length.

Pooling, prompts, truncation, Dense heads and normalisation are sentence-transformers' own, so a
vector here differs from its `encode` by rounding alone.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.base.errors import SourceError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Encoded, Floats, Source
from tierexport.model.batches import length_sorted, prompt_for, token_ids
from tierexport.model.folder import modules, transformer_folder
from tierexport.model.vector_store import VectorStore

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BLOCK_TEXTS = 4096
"""Texts that are tokenized and sorted by length together."""


def open_model(source: Source, device: str = "cpu") -> "SentenceTransformer":
    """The source model in fp32, in evaluation mode. Raises SourceError when it can't be loaded."""
    st = import_sentence_transformers()
    import torch

    torch.manual_seed(0)  # a pooler that the weights lack is drawn at random, the same every time
    options = {"model_kwargs": {"dtype": torch.float32}, "device": device, "local_files_only": True}
    try:
        if modules(source.path):
            model = st.SentenceTransformer(str(source.path), **options)
        else:
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

            transformer = Transformer(str(source.path), model_args={"dtype": torch.float32})
            pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=source.pooling)
            model = st.SentenceTransformer(modules=[transformer, pooling, Normalize()], device=device)
    except Exception as error:  # a stranger's files fail in any way
        raise SourceError(f"{source.path}: sentence-transformers can't load this model: {error}") from error
    if source.max_tokens:
        model.max_seq_length = source.max_tokens
    model.prompts.update(source.prompts)
    # sentence-transformers takes an empty "document" before a "passage" that says something
    model.prompts.update(
        {name: prompt_for(model.prompts, kind) for name, kind in (("query", "query"), ("document", "passage"))}
    )
    model.eval()
    return model


def check_complete(source: Source) -> None:
    """Refuse weights that lack what config.json promises: transformers would fill the gap at random.

    A pooler may be absent; no embedding uses it. Raises SourceError naming a tensor that is missing.
    """
    import_sentence_transformers()
    from transformers import AutoConfig

    folder = transformer_folder(source.path)
    try:
        known = auto_class(AutoConfig.from_pretrained(folder, local_files_only=True))
        _, found = known.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except Exception as error:  # a stranger's files fail in any way
        raise SourceError(f"{source.path}: transformers can't load this model: {error}") from error
    if missing := sorted(name for name in found["missing_keys"] if "pooler" not in name):
        raise SourceError(
            f"{source.path}: config.json promises {missing[0]}, which the weights lack ({len(missing)} such tensors)"
        )


def auto_class(config: Any) -> Any:
    """The class of transformers that loads what sentence-transformers runs: of an encoder-decoder the encoder alone."""
    from transformers import AutoModel, AutoModelForTextEncoding

    encoders = AutoModelForTextEncoding._model_mapping
    alone = type(config) in encoders and encoders[type(config)].__name__.endswith("EncoderModel")
    return AutoModelForTextEncoding if alone else AutoModel


def encode(model: "SentenceTransformer", texts: Sequence[str], prompt: str, store: "VectorStore") -> Encoded:
    """Encode `texts`, each prefixed with `prompt`, block by block, so that memory is bounded."""
    started = time.perf_counter()
    for first in range(0, len(texts), BLOCK_TEXTS):
        block = texts[first : first + BLOCK_TEXTS]
        tokens = token_ids(model, [prompt + text for text in block])
        store.add(tokens, _encode_block(model, block, [len(ids) for ids in tokens], prompt))
    return store.close(time.perf_counter() - started)


def _encode_block(model: "SentenceTransformer", texts: Sequence[str], lengths: Sequence[int], prompt: str) -> Floats:
    import torch

    found: list[tuple[list[int], Floats]] = []
    with torch.inference_mode():
        for batch in length_sorted(lengths):
            features = model.preprocess([texts[index] for index in batch], prompt=prompt or None)
            features = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in features.items()}
            vectors = model(features)["sentence_embedding"][:, : model.truncate_dim]
            found.append((batch, vectors.float().cpu().numpy()))
    whole = np.zeros((len(texts), found[0][1].shape[1]), np.float32)
    for batch, rows in found:
        whole[batch] = rows
    return whole
