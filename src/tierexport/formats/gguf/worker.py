"""Encodes texts through llama.cpp, in a subprocess, so that a crash is reported and the rest goes on.

Called as `python -m … GGUF DEVICE`. Each line on stdin is a job in JSON: a file with a JSON string for each text, the tokens
at which texts are cut, and a folder. Written there are the files of `model.vector_store.VectorStore`, and `done`, a byte for
each text, so that the parent knows at which one the process died. A line on stdout answers each job that is done.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tierexport.base.errors import ArtifactError
from tierexport.formats.gguf.llama import LlamaFile


def main(path: str, device: str) -> None:
    """Run the jobs of stdin. Whatever llama.cpp logs goes to stderr, which the parent keeps."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        model = LlamaFile(Path(path), device == "cuda")
        for line in sys.stdin:
            run(model, json.loads(line))
            answers.write("done\n")
            answers.flush()


def run(model: LlamaFile, job: Mapping[str, Any]) -> None:
    """Encode the texts of one job. Raises ArtifactError where llama.cpp fails on one."""
    folder = Path(job["folder"])
    began = time.perf_counter()
    with Path(job["texts"]).open(encoding="utf-8") as texts:
        lengths = _tokenize_all(model, texts, job["max_tokens"], folder)
    tokenized = time.perf_counter()
    model.reserve(max(lengths, default=1))
    started = time.perf_counter()
    _encode_all(model, lengths, folder)
    (folder / "seconds").write_text(repr(tokenized - began + time.perf_counter() - started))


def _tokenize_all(model: LlamaFile, texts: Iterable[str], limit: int, folder: Path) -> list[int]:
    lengths = []
    with (folder / "tokens").open("wb") as tokens:
        for text in texts:
            ids = model.tokens(json.loads(text), limit)
            tokens.write(np.array(ids, np.int32).tobytes())
            lengths.append(len(ids))
    np.array(lengths, np.int64).tofile(folder / "lengths")
    return lengths


def _encode_all(model: LlamaFile, lengths: Iterable[int], folder: Path) -> None:
    tokens = np.memmap(folder / "tokens", np.int32, mode="r")
    start = 0
    with (folder / "vectors").open("wb") as vectors, (folder / "done").open("wb", buffering=0) as done:
        for length in lengths:
            vectors.write(model.vector(tokens[start : start + length].tolist()).tobytes())
            done.write(b".")
            start += length


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ArtifactError as error:
        raise SystemExit(str(error)) from None
