"""llama.cpp's converter in a process forked from one that has imported what all conversions share: torch and transformers.

As `formats/gguf/convert.py` runs it, a process that starts from nothing, it spends nearly all its time on those. The
converter's own package and the gguf beside it are imported anew each time.
"""

import functools
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any


def run(command: Sequence[str], stdout: IO[bytes], **_: Any) -> subprocess.CompletedProcess[bytes]:
    """What `subprocess.run(command, stdout=…, stderr=…)` does, for `python convert.py REQUEST.json` alone."""
    script, request = command[1:]
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps({"script": script, "request": request, "log": stdout.name}) + "\n")
    server.stdin.flush()
    return subprocess.CompletedProcess(command, int(server.stdout.readline()))


FORKS = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
"""In place of the module `subprocess` in `formats/gguf/convert.py`."""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks, which ends when this one does: its input is then closed."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def serve() -> None:
    """Fork for each request that comes, a line of JSON each, and answer with the exit code."""
    import sentencepiece  # noqa: F401  # shared by what is forked
    import torch  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _convert(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _convert(script: str, request: str, log: str) -> None:
    """One conversion, in the process that was forked for it, which ends here."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(log, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(written, number)
    sys.argv[:] = [script, request]
    sys.path.insert(0, str(Path(script).parent))
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
