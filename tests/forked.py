"""tierexport's command in a process of its own for each call, forked from one that has imported what all calls share.

A process that starts from nothing spends a second on scipy and tierexport's own modules. The hubs' clients read their
environment when they are imported, so they are not among what is shared: each call imports them anew.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

SECONDS = 300
"""A call that takes longer is killed."""


def command(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `tierexport ARGUMENTS` prints and returns in that environment alone, where no client waits between tries."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        written = [Path(scratch) / name for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "environment": environment, "written": [str(path) for path in written]}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        stdout, stderr = (path.read_text() for path in written)
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks, which ends when this one does: its input is then closed."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def serve() -> None:
    """Fork for each request that comes, a line of JSON each, and answer with the exit code."""
    import tierexport.cli.commands
    import tierexport.pipeline  # noqa: F401  # what the commands import as they run

    assert not {"huggingface_hub", "modelscope_hub"} & sys.modules.keys()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(arguments: list[str], environment: dict[str, str], written: list[str]) -> None:
    """The command, in the process that was forked for it, which ends here."""
    from tierexport.cli import main

    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(written, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    time.sleep = lambda _: None
    code = 1
    try:
        main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
