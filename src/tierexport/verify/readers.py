"""Opens artifacts as their users do and encodes texts: llama.cpp in a worker, torchao by its loader."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tierexport.encode import VectorStore, encode, open_encoded
from tierexport.errors import ArtifactError
from tierexport.formats.torchao import load
from tierexport.records import Encoded
from tierexport.verify import llama_worker

STALLED_SECONDS = 600
"""A worker that has written nothing for so long hangs: no single text takes that."""


def read_gguf(path: Path, texts: Sequence[str], max_tokens: int, folder: Path, prompt: str = "", gpu: bool = False) -> Encoded:
    """Encode through llama.cpp in a process of its own; what it writes lies in `folder`.

    Texts, each prefixed with `prompt`, are cut at `max_tokens`. Raises ArtifactError, saying at
    which text, when that process fails, dies or hangs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job, log = Path(scratch) / "job.json", Path(scratch) / "log"
        with (Path(scratch) / "texts.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(prompt + text) + "\n" for text in texts)
        job.write_text(
            json.dumps({"path": str(path), "texts": file.name, "max_tokens": max_tokens, "folder": str(folder), "gpu": gpu}),
            "utf-8",
        )
        code = _run_worker(job, folder, log)
        if code != 0:
            raise ArtifactError(_failure(path, texts, folder, code, log.read_text("utf-8", "replace")))
    return open_encoded(folder)


def _run_worker(job: Path, folder: Path, log: Path) -> int | None:
    """The worker's exit status, or None where it stopped writing and was killed."""
    command = [sys.executable, "-m", llama_worker.__name__, str(job)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as worker:
        written = -1
        try:
            while True:
                try:
                    return worker.wait(STALLED_SECONDS)
                except subprocess.TimeoutExpired:
                    before, written = written, sum(file.stat().st_size for file in folder.iterdir())
                    if written == before:
                        return None
        finally:
            worker.kill()


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


def open_torchao(folder: Path, prompt: str, device: str) -> Callable[[Sequence[str], VectorStore], Encoded]:
    """What encodes through sentence-transformers. Raises ArtifactError when the folder can't be loaded."""
    model = load(str(folder), device)
    return lambda texts, store: encode(model, texts, prompt, store)
