"""Encodes texts through llama.cpp, in a process that may die: `python -m … JOB.json`.

The job names a GGUF, a file with a JSON string for each text, the tokens at which texts are cut,
whether the GPU is to be used, and a folder. Written there are the files of `encode.VectorStore`, and
`done`, a byte for each text, so that the parent knows at which one the process died.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tierexport.errors import ArtifactError
from tierexport.formats.llama import LlamaFile


def main(job_file: str) -> None:
    """Run one job. Whatever llama.cpp logs goes to stderr, which the parent keeps."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    folder = Path(job["folder"])
    model = LlamaFile(Path(job["path"]), job["gpu"])
    began = time.perf_counter()
    with Path(job["texts"]).open(encoding="utf-8") as texts:
        lengths = _tokenize_all(model, texts, job["max_tokens"], folder)
    tokenized = time.perf_counter()
    model.reserve(max(lengths, default=1))
    started = time.perf_counter()
    tokens = np.memmap(folder / "tokens", np.int32, mode="r")
    start = 0
    with (folder / "vectors").open("wb") as vectors, (folder / "done").open("wb", buffering=0) as done:
        for length in lengths:
            vectors.write(model.vector(tokens[start : start + length].tolist()).tobytes())
            done.write(b".")
            start += length
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


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ArtifactError as error:
        raise SystemExit(str(error)) from None
