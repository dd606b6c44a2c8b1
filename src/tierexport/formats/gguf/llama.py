"""A GGUF open in llama.cpp, one text at a time: tokens as Hugging Face's tokenizers cut them, and the pooled vector."""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tierexport.base.errors import ArtifactError
from tierexport.base.records import Floats
from tierexport.base.workers import cores

ALL_LAYERS = 10_000
"""More than any model has: llama.cpp's way to ask for all of them on the GPU."""

LONGEST_VALUE = 1 << 16
"""Bytes of a metadata value that is read."""


@functools.cache
def _silent() -> Any:
    """A log callback that says nothing; llama.cpp keeps a pointer to it, so it must live on."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


class LlamaFile:
    """One model and, once a text was encoded, a context for it. llama.cpp may abort the process on a bad file."""

    def __init__(self, path: Path, gpu: bool = False, quiet: bool = False) -> None:
        """`quiet`: llama.cpp's log, which is the process's, is silenced. Raises ArtifactError when it can't load the file."""
        import llama_cpp

        if quiet:
            llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
        self._llama: Any = llama_cpp
        self._gpu = gpu
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = ALL_LAYERS if gpu else 0
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise ArtifactError(f"llama.cpp can't load {path}")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.dimensions = int(llama_cpp.llama_model_n_embd_out(self._model))
        self.trained_tokens = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self._contexts: list[Any] = []  # one at most
        self._room = 0
        weakref.finalize(self, _free, llama_cpp, self._model, self._contexts)  # Python does not know what they take

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text, or None."""
        room = ctypes.create_string_buffer(LONGEST_VALUE)
        length = self._llama.llama_model_meta_val_str(self._model, key.encode(), room, LONGEST_VALUE)
        return room.value.decode("utf-8", "replace") if length >= 0 else None

    def tokens(self, text: str, limit: int) -> list[int]:
        """Token ids, special ones included, cut at `limit` as Hugging Face tokenizers do: the closing one stays.

        Raises ArtifactError when llama.cpp can't tokenize the text.
        """
        raw = text.encode()
        room = len(raw) + 16
        ids = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._vocabulary, raw, len(raw), ids, room, True, True)
        if count < 0:
            raise ArtifactError(f"llama.cpp can't tokenize {text[:80]!r}")
        found = list(ids[:count])
        if len(found) <= limit:
            return found
        closing = {self._llama.llama_vocab_sep(self._vocabulary), self._llama.llama_vocab_eos(self._vocabulary)}
        return [*found[: limit - 1], found[-1]] if found[-1] in closing else found[:limit]

    def reserve(self, tokens: int) -> None:
        """Make room for texts of so many tokens. Raises ArtifactError for more than the model was trained for."""
        if tokens <= self._room:
            return
        if tokens > self.trained_tokens:  # llama.cpp would abort
            raise ArtifactError(
                f"a text has {tokens} tokens, but the model was trained for {self.trained_tokens}: cut texts at fewer"
            )
        llama = self._llama
        while self._contexts:
            llama.llama_free(self._contexts.pop())
        self._room = 0
        parameters = llama.llama_context_default_params()
        # A non-causal encoder needs the whole text in one micro-batch; larger ones only cost time.
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = tokens
        parameters.n_seq_max = 1
        parameters.embeddings = True
        # Threads wait for each other at each small product: more of them than cores that this process may use are far slower.
        parameters.n_threads = parameters.n_threads_batch = cores()
        # On a CPU it is several times as fast; on a GPU some head sizes lack it, and llama.cpp knows which.
        flash = llama.LLAMA_FLASH_ATTN_TYPE_AUTO if self._gpu else llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.flash_attn_type = flash
        context = llama.llama_init_from_model(self._model, parameters)
        if not context:
            raise ArtifactError("llama.cpp can't make a context for this model")
        self._contexts.append(context)
        self._room = tokens

    def vector(self, ids: Sequence[int]) -> Floats:
        """The pooled vector of a text, float32 (dimensions,), not normalized.

        Raises ArtifactError when llama.cpp fails on it, or the file states no pooling.
        """
        llama = self._llama
        self.reserve(len(ids))
        context = self._contexts[0]
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
                raise ArtifactError(f"llama.cpp failed with code {code} on a text of {len(ids)} tokens")
            pointer = llama.llama_get_embeddings_seq(context, 0)
            if not pointer:
                raise ArtifactError("the file states no pooling, so llama.cpp returns no vector per text")
            return np.ctypeslib.as_array(pointer, (self.dimensions,)).astype(np.float32)
        finally:
            llama.llama_batch_free(batch)


def _free(llama: Any, model: Any, contexts: Sequence[Any]) -> None:
    for context in contexts:
        llama.llama_free(context)
    llama.llama_model_free(model)
