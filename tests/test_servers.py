"""What a card says of servers and of those who ask them: llama-server from the pinned archive, by HTTP and by clients."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from card_snippets import cosine, python, snippet
from conftest import RECIPES, build
from tierexport import load
from tierexport.base.records import Floats
from tierexport.report.card import QUESTION

PORT = "8080"
"""The card's."""

INSTRUCTIONS = frozenset({"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES"})
"""Those that Ollama documents of a Modelfile."""


@dataclass(frozen=True)
class Served:
    """A folder with a GGUF alone, its card with a free port in place of the card's, and the vector that it has to give."""

    folder: Path
    card: str
    expected: Floats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "out"
    return build(RECIPES / "int8.toml", out, "--set", 'formats=["gguf"]', "--set", "rounding=nearest").folder


@pytest.fixture(scope="module")
def served(folder: Path, tool: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The card's own command runs until the last test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    card = (folder / "README.md").read_text("utf-8")
    assert PORT in snippet(card, "llama.cpp", "sh", 1)
    card = card.replace(PORT, port)
    environment = {**os.environ, "PATH": f"{tool('llama-server').parent}:{os.environ['PATH']}"}
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("wb") as output:
        command = f"exec {snippet(card, 'llama.cpp', 'sh', 1)}"
        process = subprocess.Popen(command, shell=True, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            _wait(port, process, log)
            (gguf,) = (folder / "gguf").iterdir()
            yield Served(folder, card, load(str(gguf)).encode(QUESTION))
        finally:
            process.terminate()
            process.wait(30)


def _wait(port: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the server answers that it is ready."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if json.load(answer) == {"status": "ok"}:
                    return
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text("utf-8", "replace"))


def test_plain_http(served: Served) -> None:
    command = snippet(served.card, "llama.cpp", "sh", 2)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["data"]
    vector = np.array(found["embedding"], np.float32)
    assert cosine(vector, served.expected) > 0.9999
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-4


def test_the_openai_client(served: Served) -> None:
    pytest.importorskip("openai")
    found = python(snippet(served.card, "llama.cpp", "python"), "vector", served.folder)
    assert cosine(found, served.expected) > 0.9999


def test_haystack(served: Served) -> None:
    pytest.importorskip("haystack")
    quiet = {"HAYSTACK_TELEMETRY_ENABLED": "False"}
    found = python(snippet(served.card, "Haystack", "python"), "vector", served.folder, quiet)
    assert cosine(found, served.expected) > 0.9999


NODE = ("node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1")
"""The package, and llama.cpp as it was built for it."""


def test_node_llama_cpp(folder: Path, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node-llama-cpp needs node and npm")
    install = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional", *NODE]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip(f"{NODE[0]} can't be installed here")
    shutil.copytree(folder / "gguf", tmp_path / "gguf")
    code = snippet((folder / "README.md").read_text("utf-8"), "node-llama-cpp", "js")
    (tmp_path / "card.mjs").write_text(f"{code}\nconsole.log(JSON.stringify(vector));\nprocess.exit(0);\n")
    done = subprocess.run(["node", "card.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (gguf,) = (folder / "gguf").iterdir()
    assert cosine(np.array(json.loads(done.stdout.splitlines()[-1]), np.float32), load(str(gguf)).encode(QUESTION)) > 0.9999


def modelfile(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile with their arguments, by its documented grammar.

    A line is empty, a comment (#), or an instruction, in any case of letters, and its argument, which takes several lines
    between three quotes. Raises ValueError for anything else.
    """
    found = []
    rest = text
    while rest := rest.lstrip():
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        read = re.match(r'([A-Za-z]+)[ \t]+("""(?P<long>.*?)"""|(?P<short>[^\n]+))[ \t]*(\n|$)', rest, re.S)
        if read is None or read[1].upper() not in INSTRUCTIONS:
            raise ValueError(f"no instruction: {rest.splitlines()[0]!r}")
        found.append((read[1].upper(), read["long"] if read["long"] is not None else read["short"].strip()))
        rest = rest[read.end() :]
    if [name for name, _ in found].count("FROM") != 1:
        raise ValueError("a Modelfile has one FROM")
    return found


def test_the_modelfile_is_one_and_names_a_file_that_is_there(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    ((name, path),) = modelfile(snippet(card, "Ollama", ""))
    assert name == "FROM"
    assert path.startswith("./")  # a name without a path is looked for in Ollama's library
    assert (folder / path).read_bytes()[:4] == b"GGUF"
    assert re.fullmatch(r"[a-z0-9._-]+", re.findall(r"`ollama create (\S+) -f Modelfile`", card)[0])


@pytest.mark.parametrize("text", ["", "FROM", "FROM ./a\nFROM ./b", "./a.gguf", "FROM ./a\nTEMPLATE", "RUN ls\nFROM ./a"])
def test_what_is_no_modelfile_is_told_apart(text: str) -> None:
    with pytest.raises(ValueError, match="no instruction|one FROM"):
        modelfile(text)


def test_a_modelfile_s_other_instructions_are_read() -> None:
    text = '# of mine\nfrom ./a.gguf\nPARAMETER num_ctx 256\nSYSTEM """one\ntwo"""\n'
    assert modelfile(text) == [("FROM", "./a.gguf"), ("PARAMETER", "num_ctx 256"), ("SYSTEM", "one\ntwo")]
