"""The fp32 reference: the source model as sentence-transformers runs it, in batches of like length.

Pooling, prompts, truncation, Dense heads and normalisation are sentence-transformers' own, so a
vector here differs from its `encode` by rounding alone.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tierexport.errors import SourceError
from tierexport.libraries import import_sentence_transformers
from tierexport.model_folder import modules, transformer_folder
from tierexport.records import Encoded, Floats, Source
from tierexport.topk import blocks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BLOCK_TEXTS = 4096
"""Texts that are tokenized and sorted by length together."""

BATCH_TOKENS = 2048
"""Padded tokens per batch, so that short texts share one and long ones don't fill the memory."""


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


class VectorStore:
    """Token ids and vectors on their way to a folder, appended as they come.

    The files are raw arrays: `lengths` (int64), `tokens` (int32), `vectors` (float32), and
    `seconds`; whoever writes them in another process writes the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = 0

    def add(self, tokens: Sequence[Sequence[int]], vectors: Floats) -> None:
        """Append some texts' token ids and vectors."""
        self._append("lengths", np.array([len(ids) for ids in tokens], np.int64))
        self._append("tokens", np.array([token for ids in tokens for token in ids], np.int32))
        self._append("vectors", np.ascontiguousarray(vectors, np.float32))
        self.texts += len(tokens)

    def close(self, seconds: float) -> Encoded:
        """Note how long it took, and open what was written."""
        (self.folder / "seconds").write_text(repr(seconds))
        return open_encoded(self.folder)

    def _append(self, name: str, values: "npt.NDArray[Any]") -> None:
        with (self.folder / name).open("ab") as file:
            file.write(values.tobytes())


def open_encoded(folder: Path) -> Encoded:
    """What a VectorStore left in a folder, mapped into memory."""
    lengths = np.fromfile(folder / "lengths", np.int64)
    return Encoded(
        lengths=lengths,
        tokens=_mapped(folder / "tokens", np.dtype(np.int32)),
        vectors=_mapped(folder / "vectors", np.dtype(np.float32)).reshape(len(lengths), -1),
        seconds=float((folder / "seconds").read_text()),
    )


def _mapped(path: Path, dtype: "np.dtype[Any]") -> "npt.NDArray[Any]":
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def not_finite(found: Encoded) -> npt.NDArray[np.int64]:
    """Rows of vectors that hold NaN or infinity; read in chunks, for the vectors may be a memory map."""
    chunks = [~np.isfinite(found.vectors[rows]).all(1) for rows in blocks(len(found.vectors), BLOCK_TEXTS)]
    return np.flatnonzero(np.concatenate(chunks)) if chunks else np.zeros(0, np.int64)
