"""The house stands as docs/architecture.md draws it: imports go downward only."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "tierexport"

LAYERS = (
    "base", "metrics", "artifact", "datasets", "model", "recipe", "quantize", "formats", "vectors", "verify", "search",
    "report", "publish", "training", "pipeline", "quantizing", "cli", "__main__",
)  # fmt: skip
"""Packages, lowest first: each imports from those below it, and never in a circle among its own files."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """The modules of tierexport that a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {each for name in node.names for each in (f"{node.module}.{name.name}", node.module)}
        elif isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
    return {each for each in names if each in MODULES} - {module(path)}


def layer(name: str) -> int:
    return LAYERS.index(name.split(".")[1])


def test_only_the_order_of_the_stages_stands_beside_the_packages() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "pipeline.py", "quantizing.py"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward_only(name: str) -> None:
    assert name.split(".")[1] in LAYERS, "a new package has to be given its layer"
    upward = {each for each in imported(MODULES[name]) if layer(each) > layer(name)}
    assert not upward, f"{name} imports {upward} from above"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Nor through others. A package's own __init__, which all of its files import in passing, is left out."""
    waiting = {name: {each for each in imported(path) if not name.startswith(f"{each}.")} for name, path in MODULES.items()}
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert not waiting, f"these import each other: {sorted(waiting)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_has_to_be_scrolled_forever(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{node.name} is long"


def test_only_the_command_line_prints() -> None:
    printing = [path.name for path in FILES if "print(" in path.read_text().replace("_print(", "").replace("fingerprint(", "")]
    assert set(printing) <= {"terminal.py"}
