"""Encodes texts through llama.cpp, in a process that may die: `python -m … JOB.json`.

The job names a GGUF, a file with a JSON string for each text, the tokens at which texts are cut,
whether the GPU is to be used, and a folder. Written there are the files of `encode.VectorStore`, and
`done`, a byte for each text, so that the parent knows at which one the process died.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ALL_LAYERS = 10_000
"""More than any model has: llama.cpp's way to ask for all of them on the GPU."""


def main(job_file: str) -> None:
    """Run one job. Whatever llama.cpp logs goes to stderr, which the parent keeps."""
    import llama_cpp

    job = json.loads(Path(job_file).read_text("utf-8"))
    folder = Path(job["folder"])
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = ALL_LAYERS if job["gpu"] else 0
    model = llama_cpp.llama_model_load_from_file(job["path"].encode(), settings)
    if not model:
        raise SystemExit(f"llama.cpp can't load {job['path']}")
    began = time.perf_counter()
    with Path(job["texts"]).open(encoding="utf-8") as texts:
        lengths = _tokenize_all(llama_cpp, llama_cpp.llama_model_get_vocab(model), texts, job["max_tokens"], folder)
    tokenized = time.perf_counter()
    context = _context(llama_cpp, model, max(lengths, default=1), job["gpu"])
    started = time.perf_counter()
    tokens = np.memmap(folder / "tokens", np.int32, mode="r")
    start = 0
    with (folder / "vectors").open("wb") as vectors, (folder / "done").open("wb", buffering=0) as done:
        for length in lengths:
            vectors.write(_embed(llama_cpp, model, context, tokens[start : start + length]).tobytes())
            done.write(b".")
            start += length
    (folder / "seconds").write_text(repr(tokenized - began + time.perf_counter() - started))


def _tokenize_all(llama: Any, vocabulary: Any, texts: Iterable[str], limit: int, folder: Path) -> list[int]:
    lengths = []
    with (folder / "tokens").open("wb") as tokens:
        for text in texts:
            ids = _cut(llama, vocabulary, _tokenize(llama, vocabulary, json.loads(text)), limit)
            tokens.write(np.array(ids, np.int32).tobytes())
            lengths.append(len(ids))
    np.array(lengths, np.int64).tofile(folder / "lengths")
    return lengths


def _context(llama: Any, model: Any, longest: int, gpu: bool) -> Any:
    """A context for one text at a time, the longest being of `longest` tokens."""
    trained = llama.llama_model_n_ctx_train(model)
    if longest > trained:  # llama.cpp would abort
        raise SystemExit(f"a text has {longest} tokens, but the model was trained for {trained}: cut texts at fewer")
    parameters = llama.llama_context_default_params()
    # A non-causal encoder needs the whole text in one micro-batch; larger ones only cost time.
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = longest
    parameters.n_seq_max = 1
    parameters.embeddings = True
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
    # On a CPU it is several times as fast; on a GPU some head sizes lack it, and llama.cpp knows which.
    parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_AUTO if gpu else llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise SystemExit("llama.cpp can't make a context for this model")
    return context


def _tokenize(llama: Any, vocabulary: Any, text: str) -> list[int]:
    raw = text.encode()
    room = len(raw) + 16
    ids = (ctypes.c_int32 * room)()
    count = llama.llama_tokenize(vocabulary, raw, len(raw), ids, room, True, True)
    if count < 0:
        raise SystemExit(f"llama.cpp can't tokenize {text[:80]!r}")
    return list(ids[:count])


def _cut(llama: Any, vocabulary: Any, ids: list[int], limit: int) -> list[int]:
    """Cut as Hugging Face tokenizers do: the closing special token stays."""
    closing = {llama.llama_vocab_sep(vocabulary), llama.llama_vocab_eos(vocabulary)}
    if len(ids) <= limit:
        return ids
    return [*ids[: limit - 1], ids[-1]] if ids[-1] in closing else ids[:limit]


def _embed(llama: Any, model: Any, context: Any, ids: Any) -> Any:
    batch = llama.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position] = int(token)
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = True
        memory = llama.llama_get_memory(context)
        if memory:
            llama.llama_memory_clear(memory, True)
        run = llama.llama_decode if memory else llama.llama_encode
        if (code := run(context, batch)) != 0:
            raise SystemExit(f"llama.cpp failed with code {code} on a text of {len(ids)} tokens")
        pointer = llama.llama_get_embeddings_seq(context, 0)
        if not pointer:
            raise SystemExit("the file states no pooling, so llama.cpp returns no vector per text")
        return np.ctypeslib.as_array(pointer, (llama.llama_model_n_embd_out(model),)).astype(np.float32)
    finally:
        llama.llama_batch_free(batch)


if __name__ == "__main__":
    main(sys.argv[1])
