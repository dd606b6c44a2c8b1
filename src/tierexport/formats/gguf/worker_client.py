"""A GGUF open in llama.cpp in a subprocess, which several sets of texts share."""

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from tierexport.base.errors import ArtifactError
from tierexport.base.records import Encoded
from tierexport.formats.gguf import worker
from tierexport.model.vector_store import open_encoded

STALLED_SECONDS = 600
"""A worker that has written nothing for so long hangs: no single text takes that."""


class Worker:
    """The subprocess, started when the first texts come, and again where it died of some."""

    def __init__(self, path: Path, gpu: bool = False) -> None:
        self.path, self._gpu = path, gpu
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def encode(self, texts: Sequence[str], prompt: str, limit: int, folder: Path) -> Encoded:
        """Vectors of texts, each prefixed with `prompt` and cut at `limit` tokens; what is written lies in `folder`.

        Raises ArtifactError, saying at which text, when the subprocess fails, dies or hangs.
        """
        scratch = self._started()
        with (scratch / "texts.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(prompt + text) + "\n" for text in texts)
        self._send({"texts": file.name, "max_tokens": limit, "folder": str(folder)})
        if not self._answered(folder):
            code = self._ended()
            log = (scratch / "log").read_text("utf-8", "replace")
            self.close()
            raise ArtifactError(_failure(self.path, texts, folder, code, log))
        return open_encoded(folder)

    def close(self) -> None:
        """End the subprocess, and remove its log."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        if self._scratch:
            self._scratch.cleanup()
        self._process = self._scratch = None

    def _started(self) -> Path:
        """The folder of the running subprocess, which is started if there is none."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory()
            command = [sys.executable, "-m", worker.__name__, str(self.path), "cuda" if self._gpu else "cpu"]
            with (Path(self._scratch.name) / "log").open("wb") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            self._answers = queue.Queue()
            threading.Thread(target=_listen, args=(self._process, self._answers), daemon=True).start()
        return Path(self._scratch.name)

    def _send(self, job: dict[str, object]) -> None:
        assert self._process and self._process.stdin  # noqa: S101  # `_started` made both
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError:  # it is dead, which `_answered` will find
            pass

    def _answered(self, folder: Path) -> bool:
        """Wait for the job's end: False where the subprocess has ended before, or stopped writing."""
        written = -1
        while True:
            try:
                return self._answers.get(timeout=STALLED_SECONDS) is not None
            except queue.Empty:
                before, written = written, sum(file.stat().st_size for file in folder.iterdir())
                if written == before:
                    return False

    def _ended(self) -> int | None:
        """The subprocess's exit status, or None where it still runs, and hangs."""
        assert self._process  # noqa: S101
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            return None


REFUSED_INSTRUCTION = (
    "it was compiled to an instruction that this machine refuses, as GCC makes of llama.cpp's AMX kernels "
    "(ggml-org/llama.cpp pull request 26954): CFLAGS=-mno-amx-int8 CXXFLAGS=-mno-amx-int8 "
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
)


def _listen(process: "subprocess.Popen[str]", answers: "queue.Queue[str | None]") -> None:
    """Hand on the lines of a subprocess, and None when it ends."""
    assert process.stdout  # noqa: S101
    for line in process.stdout:
        answers.put(line)
    answers.put(None)


def _failure(path: Path, texts: Sequence[str], folder: Path, code: int | None, log: str) -> str:
    how = "hung" if code is None else f"was killed by signal {-code}" if code < 0 else "failed"
    lines = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
    told = [line for line in lines if "error" in line.lower()][-1:] + lines[-1:]
    if code == -signal.SIGILL:
        told.append(REFUSED_INSTRUCTION)
    return f"{path.name}: llama.cpp {how}{_where(texts, folder)}: {'; '.join(dict.fromkeys(told))}"


def _where(texts: Sequence[str], folder: Path) -> str:
    """The text that llama.cpp was at: it leaves a byte for each that is done."""
    done = folder / "done"
    if not done.is_file():
        return " before the first text"
    number = done.stat().st_size
    return f" at text {number + 1} of {len(texts)} ({texts[number][:60]!r})" if number < len(texts) else ""
