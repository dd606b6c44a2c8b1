"""The command line as a shell sees it: instant help, an example for each command, completion."""

import json
import os
import subprocess
import sys

import click
import pytest

from conftest import run
from tierexport import cli
from tierexport.base.shipped import names_of
from tierexport.cli.vector_commands import vectors

COMMANDS = {name: each for name, each in cli.main.commands.items() if not isinstance(each, click.Group)}
COMMANDS |= {f"vectors {name}": each for name, each in vectors.commands.items()}
HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "rich", "scipy", "pydantic")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tierexport.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in cli.main.commands:
        assert name in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_parse(name: str) -> None:
    assert "Examples:" in run(*name.split(), "--help").output
    command = COMMANDS[name]
    shown = [line.strip() for line in (command.epilog or "").splitlines() if "tierexport" in line]
    assert len(shown) >= 2
    for example in shown:
        assert example.startswith(f"tierexport {name}")
        known = {option for each in command.params if isinstance(each, click.Option) for option in each.opts}
        assert {word for word in example.split() if word.startswith("--")} <= known, example


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered_to_every_shell(shell: str) -> None:
    environment = {**os.environ, "_TIEREXPORT_COMPLETE": f"{shell}_source"}
    done = subprocess.run(["tierexport"], env=environment, capture_output=True, text=True, executable=_program())
    assert done.returncode == 0
    assert "_TIEREXPORT_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pub", "publish"),
        ("publish --des", "--despite"),
        ("build three", "three_tier"),
        ("build sear", "searched/minilm_5.8"),
        ("map all-Mini", "all-MiniLM-L6-v2"),
        ("search bge-s", "bge-small-en-v1.5"),
    ],
)
def test_completion_completes(typed: str, expected: str) -> None:
    words = f"tierexport {typed}"
    environment = {
        **os.environ, "_TIEREXPORT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    done = subprocess.run(["tierexport"], env=environment, capture_output=True, text=True, executable=_program())
    assert expected in [line.partition(",")[2] for line in done.stdout.splitlines()]


def _program() -> str:
    from pathlib import Path

    return str(Path(sys.executable).parent / "tierexport")


def test_a_path_that_no_system_takes_is_an_error_of_one_line() -> None:
    done = run("inspect", "a" * 300)
    assert done.exit_code == 3
    assert "File name too long" in done.stderr
    assert "unexpected" not in done.stderr
    assert isinstance(run("--debug", "inspect", "a" * 300).exception, OSError)


def test_recipes_in_folders_complete_and_open() -> None:
    assert "searched/minilm_5.8" in names_of("recipes")
    assert run("plan", "searched/minilm_5.8").exit_code == 0


def test_a_library_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libgomp.so.1 is missing")

    monkeypatch.setattr("tierexport.base.libraries.import_sentence_transformers", broken)
    done = run("doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    assert [each["found"] for each in findings if each["what"] == "torch" and not each["ok"]] == [
        "ImportError: libgomp.so.1 is missing"
    ]
    assert done.exit_code == 3
