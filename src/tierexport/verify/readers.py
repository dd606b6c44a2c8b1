"""Opens artifacts as their users do and encodes texts: llama.cpp in a worker, torchao by its loader."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tierexport.encode import encode
from tierexport.errors import ArtifactError
from tierexport.formats.torchao import load
from tierexport.records import Encoded

SECONDS_PER_TEXT = 60


def read_gguf(path: Path, texts: Sequence[str], max_tokens: int) -> Encoded:
    """Encode through llama.cpp in a process of its own, on the CPU.

    Texts carry their prompts; they are cut at `max_tokens`. Raises ArtifactError, saying at which
    text, when that process fails, dies or hangs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job, tokens, vectors = (Path(scratch) / name for name in ("job.json", "tokens", "vectors"))
        request = {
            "path": str(path),
            "texts": list(texts),
            "max_tokens": max_tokens,
            "tokens": str(tokens),
            "vectors": str(vectors),
        }
        job.write_text(json.dumps(request), "utf-8")
        command = [sys.executable, "-m", "tierexport.verify.llama_worker", str(job)]
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            try:
                limit = 60 + SECONDS_PER_TEXT * len(texts)
                code = subprocess.run(command, stdout=output, stderr=output, timeout=limit, check=False).returncode
            except subprocess.TimeoutExpired:
                code = None
        if code != 0:
            raise ArtifactError(_failure(path, texts, tokens, code, log.read_text("utf-8", "replace")))
        found = np.fromfile(vectors, np.float32).reshape(len(texts), -1)
        ids = tuple(tuple(json.loads(line)) for line in tokens.read_text("utf-8").splitlines())
    return Encoded(ids, found)


def _failure(path: Path, texts: Sequence[str], tokens: Path, code: int | None, log: str) -> str:
    how = "hung" if code is None else f"was killed by signal {-code}" if code < 0 else "failed"
    started = len(tokens.read_text("utf-8").splitlines()) if tokens.is_file() else 0
    where = f" at text {started} ({texts[started - 1][:60]!r})" if started else " before the first text"
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it said nothing")
    return f"{path.name}: llama.cpp {how}{where}: {last}"


def read_torchao(folder: Path, texts: Sequence[str], prompt: str, device: str = "cpu") -> Encoded:
    """Encode through sentence-transformers. Raises ArtifactError when the folder can't be loaded."""
    return encode(load(str(folder), device), texts, prompt)
