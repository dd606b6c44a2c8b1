"""Tables on terminals of any width: each row says which it is, and nothing that it holds is lost."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from conftest import Built, built_once, run
from tierexport import pipeline
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.artifact.verdicts import LanguageVerdict, Verification
from tierexport.base.shipped import names_of
from tierexport.formats.inspect import inspect
from tierexport.publish import release
from tierexport.publish.table import publication_table
from tierexport.recipe.read import shipped_recipes
from tierexport.recipe.schema import recipe_keys
from tierexport.report import comparison, listings, tables
from tierexport.report.sheet import Sheet, new_sheet
from tierexport.search.found import Found, Frontier, Point
from tierexport.search.layer_map import LayerSensitivity, ModelMap
from tierexport.search.layers import LayerReading

WIDTHS = (60, 80, 110, 200)


@pytest.fixture(scope="module")
def built(shared: Path, tiny_model: Path) -> Built:
    """An artifact with figures of every kind but for languages."""
    sts = shared / "pairs.tsv"
    sts.write_text("".join(f"{n % 5}\tthe {n}th sentence\t{n} loaves of bread\n" for n in range(12)))
    settings = (f"model={tiny_model}", "verify.data=builtin", f"verify.sts={sts}", 'verify.gates=["cos_mean >= 0.1"]')
    return built_once(shared, "shown", "three_tier.toml", *(part for each in settings for part in ("--set", each)))


@pytest.fixture(scope="module")
def sheets(built: Built, tiny_model: Path) -> dict[str, Sheet]:
    """Every table that a command shows."""
    made = pipeline.plan(built.folder / "recipe.toml", [f"model={tiny_model}"])
    manifest, found = read_manifest(built.folder), read_verification(built.folder)
    readings = tuple(LayerReading(layer, 0.512, 0.25, 0.125, 0.75, 0.0625) for layer in range(12))
    costs = tuple(LayerSensitivity(layer, bits, 0.0123, 0.987) for layer in range(12) for bits in (4, 8))
    types = {f"layer {n} attention": "Q4_0" for n in range(40)}
    inspected = [part for each in inspect(built.folder) for part in tables.inspection_parts(each)]
    points = (
        Point("llama.cpp", "Q4_K_M", 21_300_000, 7.32, 0.0112, 0.01),
        Point("searched", "", 16_300_000, 5.8, 0.002, 0.003, 0.0021),
    )
    shown: dict[str, Sheet | Iterator[Sheet]] = {
        "plan": (tables.plan_table(fmt) for fmt in made),
        "totals": tables.totals_table(made),
        "sizes": tables.sizes_table(manifest),
        "verify": tables.verification_tables(_in_languages(found)),
        "compare": tables.compare_table(comparison.compare([built.folder])),
        "map": tables.map_table(ModelMap("tiny", 128, readings, costs, 3, {})),
        "found": tables.found_table(Found(Path("x.toml"), 1, 5.8, 0.1, types, 0.1)),
        "frontier": tables.frontier_table(Frontier("tiny", points)),
        "inspect": (part for part in inspected if isinstance(part, Sheet)),
        "publish": publication_table(release.publish(built.folder, "dir:nowhere", dry_run=True)),
        "recipes": listings.recipes_table(shipped_recipes()),
        "models": listings.models_table(names_of("models")),
        "keys": listings.keys_table({path: key for path, key in recipe_keys().items() if key.meaning}),
        "docs": listings.documents_table({"tutorial": "From a model to a published artifact"}),
    }
    return {
        f"{name} {number}": sheet
        for name, found_sheets in shown.items()
        for number, sheet in enumerate([found_sheets] if isinstance(found_sheets, Sheet) else found_sheets)
    }


def _in_languages(found: Verification) -> Verification:
    """The same with figures by language."""
    judged = tuple(LanguageVerdict(each, 14, 1.0, 0.998, 0.99, (0.997, 0.999)) for each in ("en", "de", "zh"))
    return replace(found, verdicts=tuple(replace(each, languages=judged if each.fidelity else ()) for each in found.verdicts))


def rendered(sheet: Sheet, width: int, terminal: bool) -> list[str]:
    """The lines of a table as a terminal of that width shows them."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal, highlight=False).print(sheet)
    return [Text.from_ansi(line).plain.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_row_loses_what_it_is_or_holds(sheets: dict[str, Sheet], width: int, terminal: bool) -> None:
    for name, sheet in sheets.items():
        lines = rendered(sheet, width, terminal)
        assert all(cell_len(line) <= width for line in lines), name
        rows = [[Text.from_markup(cell).plain for cell in row] for row in sheet.rows]
        assert rows, name
        starts = list(_starts(name, sheet, rows, lines))
        for row, start, end in zip(rows, starts, [*starts[1:], len(lines)], strict=True):
            block = " ".join(lines[start:end])
            for column, cell in zip(sheet.names, row, strict=True):
                words = cell.split() if column in sheet.text else [cell]
                assert all(word in block for word in words), (name, width, column, cell, block)


def _starts(name: str, sheet: Sheet, rows: list[list[str]], lines: list[str]) -> Iterator[int]:
    """The line of each row that names all of what it is, row after row."""
    start = -1
    for row in rows:
        keys = row[: sheet.keys]
        start = next((n for n in range(start + 1, len(lines)) if _names(sheet, keys, lines[n])), -1)
        assert start >= 0, (name, keys, lines)
        yield start


def _names(sheet: Sheet, keys: list[str], line: str) -> bool:
    """Whether a line begins with what a row is; lines of values are indented, but for numbers that stand to the right."""
    indented = line.startswith("  ") and sheet.names[0] not in sheet.right
    begins = re.match(rf"({re.escape(sheet.names[0])} )?{re.escape(keys[0])}([\s,]|$)", line.strip()) is not None
    return begins and not indented and all(key in line for key in keys)


def test_wide_terminals_get_tables_and_narrow_ones_rows_of_values(sheets: dict[str, Sheet]) -> None:
    wide, narrow = (rendered(sheets["plan 0"], width, True) for width in (200, 60))
    assert len(wide) == len(sheets["plan 0"].rows) + 4  # title, names, line, an empty one
    assert "  role token_embeddings · tier embeddings · bits 16" in "\n".join(narrow)


def test_long_names_are_cut_in_the_middle() -> None:
    sheet = new_sheet("", "file", "bytes", right=("bytes",))
    sheet.add_row("beginning/" + "x" * 100 + "/ending.gguf", "1")
    first, second, *_ = rendered(sheet, 40, True)
    assert first.startswith("beginning/xxxxxxxxxx…")
    assert first.endswith("x/ending.gguf")
    assert len(first) == 40
    assert second == "  bytes 1"


def test_a_terminal_s_width_is_taken(tmp_path: Path) -> None:
    """A real one, by its size; and COLUMNS where there is none."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen([sys.executable, "-m", "tierexport", "recipes"], stdout=follower, env=environment)
    os.close(follower)
    shown = b""
    while chunk := _read(leader):
        shown += chunk
    assert process.wait() == 0
    lines = [Text.from_ansi(line).plain.rstrip() for line in shown.decode().splitlines()]
    assert max(map(cell_len, lines)) <= 60
    assert set(names_of("recipes")) <= set(lines)


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("width", WIDTHS)
def test_commands_keep_to_columns(built: Built, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    for command in (
        ["plan", "three_tier"],
        ["recipes"],
        ["keys"],
        ["docs"],
        ["compare", built.folder],
        ["inspect", built.folder],
    ):
        done = run(*command)
        assert done.exit_code == 0, done.stderr
        assert max(map(cell_len, done.stdout.splitlines())) <= width, command
