"""The house stands as docs/architecture.md draws it: imports go downward only."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "tierexport"

LAYERS = [
    {"records", "verdicts", "errors"},
    {
        "source",
        "model_folder",
        "cardhead",
        "artifact",
        "hub",
        "roles",
        "metrics",
        "workdir",
        "codebase",
        "shipped",
        "archive",
        "libraries",
        "progress",
    }
    | {"datasets", "beir", "judgements", "textfiles", "topk"},
    {"recipe", "plan", "encode", "sharing"},
    {"calibrate", "formats", "rounding", "vectors"},
    {"verify", "search", "inspection", "comparison", "loading"},
    {"card", "report", "doctor", "hubs"},
    {"pipeline", "exploration", "publishing", "localpaths", "vectoring", "conditions"},
    {"cli", "cli_vectors", "terminal", "__main__"},
]
"""Lowest first. Within a layer modules may import each other."""

HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms of tierexport that a file imports, wherever in the file it does."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tierexport"):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {name.name for name in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("tierexport.")}
    return {each for each in rooms if each in HEIGHT}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward_only(path: Path) -> None:
    assert room(path) in HEIGHT, "a new room has to be given its layer"
    upward = {each for each in imported(path) if HEIGHT[each] > HEIGHT[room(path)]}
    assert not upward, f"{room(path)} imports {upward} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_has_to_be_scrolled_forever(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{node.name} is long"


def test_only_the_command_line_prints() -> None:
    printing = [path.name for path in FILES if "print(" in path.read_text().replace("_print(", "").replace("fingerprint(", "")]
    assert set(printing) <= {"terminal.py"}
