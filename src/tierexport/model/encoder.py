"""The fp32 reference: the source model as sentence-transformers runs it, in batches of like length.

Pooling, prompts, truncation, Dense heads and normalisation are sentence-transformers' own, so a
vector here differs from its `encode` by floating-point rounding alone.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.base.errors import SourceError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Encoded, Floats, Source
from tierexport.metrics.topk import blocks
from tierexport.model.batches import batches, original_order, prompt_for, token_ids
from tierexport.model.folder import modules, transformer_folder
from tierexport.model.vector_store import SHARD_TEXTS, VectorStore

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def open_model(source: Source, device: str = "cpu") -> "SentenceTransformer":
    """The source model in fp32, in evaluation mode. Raises SourceError when it can't be loaded."""
    try:
        model = _loaded(source, device)
    except Exception as error:  # files from elsewhere can fail in any way
        raise SourceError(f"{source.path}: sentence-transformers can't load this model: {error}") from error
    if source.max_tokens:
        model.max_seq_length = source.max_tokens
    model.prompts.update(source.prompts)
    # sentence-transformers prefers an empty "document" prompt to a "passage" prompt that is not empty
    model.prompts.update(
        {name: prompt_for(model.prompts, kind) for name, kind in (("query", "query"), ("document", "passage"))}
    )
    model.eval()
    return model


def _loaded(source: Source, device: str) -> "SentenceTransformer":
    """The model as its modules.json says, or with the source's pooling after the transformer where it has none."""
    st = import_sentence_transformers()
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(0)  # a pooler that the weights lack is drawn at random, the same every time
    kinds = {"dtype": torch.float32}
    if modules(source.path):
        return st.SentenceTransformer(str(source.path), model_kwargs=kinds, device=device, local_files_only=True)
    transformer = Transformer(str(source.path), model_args=kinds)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=source.pooling)
    return st.SentenceTransformer(modules=[transformer, pooling, Normalize()], device=device)


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
    except Exception as error:  # files from elsewhere can fail in any way
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


def without_memory(config: Any) -> Any:
    """The model of a transformers configuration with its tensors on the meta device: their shapes, and no values."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config)


def encode(model: "SentenceTransformer", texts: Sequence[str], prompt: str, store: "VectorStore") -> Encoded:
    """Encode `texts`, each prefixed with `prompt`, block by block, so that memory is bounded."""
    started = time.perf_counter()
    for rows in blocks(len(texts), SHARD_TEXTS):
        block = texts[rows]
        tokens = token_ids(model, [prompt + text for text in block])
        store.add(tokens, _encode_block(model, block, [len(ids) for ids in tokens], prompt))
    return store.close(time.perf_counter() - started)


def _encode_block(model: "SentenceTransformer", texts: Sequence[str], lengths: Sequence[int], prompt: str) -> Floats:
    """Vectors of texts, float32 (texts, dimensions); `lengths`: in tokens, with the prompt."""
    import torch

    rows: list[Sequence[int]] = []
    found: list[Floats] = []
    with torch.inference_mode():
        for batch in batches(model, texts, lengths, prompt):
            vectors = model(dict(batch.features))["sentence_embedding"][:, : model.truncate_dim]
            rows.append(batch.rows)
            found.append(vectors.float().cpu().numpy())
    whole: Floats = np.concatenate(found)[original_order(rows)]
    return whole
