"""Opens artifacts as their users do and encodes texts: llama.cpp in a worker, torchao by its loader."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tierexport.encode import VectorStore, encode, open_encoded
from tierexport.errors import ArtifactError
from tierexport.formats.torchao import load
from tierexport.records import Encoded

SECONDS_PER_TEXT = 60


def read_gguf(path: Path, texts: Sequence[str], max_tokens: int, folder: Path, gpu: bool = False) -> Encoded:
    """Encode through llama.cpp in a process of its own; what it writes lies in `folder`.

    Texts carry their prompts; they are cut at `max_tokens`. Raises ArtifactError, saying at which
    text, when that process fails, dies or hangs.
    """
    request = {"path": str(path), "texts": list(texts), "max_tokens": max_tokens, "folder": str(folder), "gpu": gpu}
    with tempfile.TemporaryDirectory() as scratch:
        job, log = Path(scratch) / "job.json", Path(scratch) / "log"
        job.write_text(json.dumps(request), "utf-8")
        command = [sys.executable, "-m", "tierexport.verify.llama_worker", str(job)]
        with log.open("wb") as output:
            try:
                limit = 60 + SECONDS_PER_TEXT * len(texts)
                code = subprocess.run(command, stdout=output, stderr=output, timeout=limit, check=False).returncode
            except subprocess.TimeoutExpired:
                code = None
        if code != 0:
            raise ArtifactError(_failure(path, texts, folder, code, log.read_text("utf-8", "replace")))
    return open_encoded(folder)


def _failure(path: Path, texts: Sequence[str], folder: Path, code: int | None, log: str) -> str:
    how = "hung" if code is None else f"was killed by signal {-code}" if code < 0 else "failed"
    lines = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
    told = [line for line in lines if "error" in line.lower()][-1:] + lines[-1:]
    return f"{path.name}: llama.cpp {how}{_where(texts, folder)}: {'; '.join(dict.fromkeys(told))}"


def _where(texts: Sequence[str], folder: Path) -> str:
    """The text that llama.cpp was at: it leaves a byte for each that is done."""
    done = folder / "done"
    if not done.is_file():
        return " before the first text"
    number = done.stat().st_size
    return f" at text {number + 1} of {len(texts)} ({texts[number][:60]!r})" if number < len(texts) else ""


def read_torchao(folder: Path, texts: Sequence[str], prompt: str, device: str, store: VectorStore) -> Encoded:
    """Encode through sentence-transformers. Raises ArtifactError when the folder can't be loaded."""
    return encode(load(str(folder), device), texts, prompt, store)
