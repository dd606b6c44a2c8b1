"""Tables on terminals of any width: each row says which it is, and nothing that it holds is lost."""

import ast
import contextlib
import fcntl
import inspect
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from conftest import Built, built_once
from tierexport import cli, pipeline
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.artifact.verdicts import LanguageVerdict, LengthVerdict, Verification
from tierexport.base.shipped import names_of
from tierexport.metrics.similarity import COSINE
from tierexport.publish import table
from tierexport.quantizing import Quantized
from tierexport.report import listings, search_tables, tables
from tierexport.report.sheet import Sheet, new_sheet
from tierexport.search.found import CodecPoint, Found, FoundCodec, Frontier, Point
from tierexport.search.layer_map import LayerSensitivity, ModelMap
from tierexport.search.layers import LayerReading
from tierexport.training.conditions import Comparison, Row

WIDTHS = (60, 80, 110, 200)


@pytest.fixture(scope="module")
def built(shared: Path, tiny_model: Path) -> Built:
    """An artifact with figures of every kind but for languages."""
    sts = shared / "pairs.tsv"
    sts.write_text("".join(f"{n % 5}\tthe {n}th sentence\t{n} loaves of bread\n" for n in range(12)))
    settings = (f"model={tiny_model}", "verify.data=builtin", f"verify.sts={sts}", 'verify.gates=["cos_mean >= 0.1"]')
    return built_once(shared, "shown", "three_tier.toml", *(part for each in settings for part in ("--set", each)))


@dataclass(frozen=True)
class Command:
    """A command that shows tables: its arguments, and what stands in for what takes long, by the place of the function."""

    arguments: tuple[object, ...]
    instead: Mapping[str, object] = field(default_factory=dict)


@pytest.fixture(scope="module")
def commands(built: Built, tiny_model: Path) -> dict[str, Command]:
    """Every command that shows tables, by its name, with values of every kind that they show."""
    folder, recipe = built.folder, built.folder / "recipe.toml"
    manifest, found = read_manifest(folder), _in_languages_and_lengths(read_verification(folder))
    made = pipeline.Build(folder, manifest, found)
    readings = tuple(LayerReading(layer, 0.512, 0.25, 0.125, 0.75, 0.0625) for layer in range(12))
    costs = tuple(LayerSensitivity(layer, bits, 0.0123, 0.987) for layer in range(12) for bits in (4, 8))
    searched = Found(Path("x.toml"), 1, 5.8, 0.1, {f"layer {n} attention": "Q4_0" for n in range(40)}, 0.1)
    points = (
        Point("llama.cpp", "Q4_K_M", 21_300_000, 7.32, 0.0112, 0.01),
        Point("searched", "", 16_300_000, 5.8, 0.002, 0.003, 0.0021),
    )
    codec = CodecPoint("int4", "rolling", 384, 2, True, False, 384, 0.7, -0.001, -0.002, 0.001, 0.98, 0.99)
    row = Row("int8, minmax, trained head", 61.29, {"scifact": 0.6, "squad-dev": 0.7}, 0.65, 0.01, -0.01, 0.03, 0.9, 1, 384, 40)
    conditions = Comparison((row, replace(row, name="fp32")), COSINE, ())
    return {
        "plan": Command(("plan", recipe, "--set", f"model={tiny_model}")),
        "build": Command(("build", recipe), {"tierexport.pipeline.build": made}),
        "quantize": Command(
            ("quantize", "tiny", "--sizes", "1MB,2MB"),
            {"tierexport.quantizing.quantize": ([Quantized(searched, made)] * 2, None)},
        ),
        "verify": Command(("verify", folder), {"tierexport.pipeline.verify_again": found}),
        "compare": Command(("compare", folder)),
        "map": Command(
            ("map", "tiny"), {"tierexport.pipeline.map_model": ModelMap("tiny", 128, readings, costs, 3, {"rewrite": 0.5})}
        ),
        "search": Command(("search", "tiny", "--bits", "5"), {"tierexport.pipeline.search": (searched, made)}),
        "search --frontier": Command(
            ("search", "tiny", "--frontier"), {"tierexport.pipeline.draw_frontier": Frontier("tiny", "gguf", points)}
        ),
        "inspect": Command(("inspect", folder)),
        "publish": Command(("publish", folder, "--to", "dir:nowhere", "--dry-run")),
        "recipes": Command(("recipes",)),
        "keys": Command(("keys",)),
        "docs": Command(("docs",)),
        "vectors search": Command(
            ("vectors", "search", "tiny", "--bytes", "384"),
            {"tierexport.pipeline.search_codec": FoundCodec("tiny", 384, 9, ("scifact",), (codec, replace(codec, bytes=192)))},
        ),
        "vectors eval": Command(
            ("vectors", "eval", "tiny", "--data", "scifact", "--pairs", recipe),
            {"tierexport.training.conditions.evaluate": conditions},
        ),
    }


def _in_languages_and_lengths(found: Verification) -> Verification:
    """The same with figures by language and by length."""
    judged = tuple(LanguageVerdict(each, 14, 1.0, 0.998, 0.99, (0.997, 0.999)) for each in ("en", "de", "zh"))
    lengths = tuple(LengthVerdict(tokens, 4, 0.998, 0.99) for tokens in (512, 1024))
    ran = (replace(each, languages=judged, lengths=lengths) if each.fidelity else each for each in found.verdicts)
    return replace(found, verdicts=tuple(ran))


@dataclass(frozen=True)
class Shown:
    """What a command wrote on stdout, and the tables that it made of it, by the functions that made them."""

    lines: list[str]
    sheets: list[Sheet]
    makers: set[str]


def shown(command: Command, width: int, terminal: bool, folder: Path) -> Shown:
    """A command run in this process, on a terminal of a width, or without one, where COLUMNS says it."""
    sheets: list[Sheet] = []
    makers: set[str] = set()

    def recorded(*arguments: Any, **named: Any) -> Sheet:
        makers.add(sys._getframe(1).f_code.co_name)
        sheets.append(new_sheet(*arguments, **named))
        return sheets[-1]

    with pytest.MonkeyPatch.context() as patch:
        for place, value in command.instead.items():
            patch.setattr(place, lambda *_, value=value, **__: value)
        for module in (tables, search_tables, listings, table):
            patch.setattr(module, "new_sheet", recorded)
        patch.chdir(folder)
        written = _written_to(command, width, terminal, patch)
    return Shown([Text.from_ansi(line).plain.rstrip() for line in written.splitlines()], sheets, makers)


def _written_to(command: Command, width: int, terminal: bool, patch: pytest.MonkeyPatch) -> str:
    """All that a command writes to stdout."""
    arguments = [str(each) for each in command.arguments]
    if not terminal:
        patch.setenv("COLUMNS", str(width))
        held = io.StringIO()
        with contextlib.redirect_stdout(held):
            cli.main(arguments, standalone_mode=False)
        return held.getvalue()
    patch.delenv("COLUMNS", raising=False)
    patch.setenv("TERM", "xterm-256color")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with ThreadPoolExecutor() as readers:
        written = readers.submit(_all_of, leader)
        with open(follower, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):  # noqa: PTH123
            patch.setattr("rich.console._STD_STREAMS", (follower,))  # whose size it asks for
            cli.main(arguments, standalone_mode=False)
        return written.result()


def _all_of(leader: int) -> str:
    """What arrives at a terminal until its other end is closed."""
    found = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(leader, 4096):
            found += chunk
    os.close(leader)
    return found.decode()


NAMES = (
    "plan", "build", "quantize", "verify", "compare", "map", "search", "search --frontier", "inspect", "publish", "recipes",
    "keys", "docs", "vectors search", "vectors eval",
)  # fmt: skip
"""Those of the commands that show tables."""


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "no terminal"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_row_loses_what_it_is_or_holds(
    name: str, width: int, terminal: bool, commands: dict[str, Command], tmp_path: Path
) -> None:
    found = shown(commands[name], width, terminal, tmp_path)
    tables_end = len(found.lines)
    assert found.sheets
    start = -1
    for sheet in found.sheets:
        rows = [[Text.from_markup(cell).plain for cell in row] for row in sheet.rows]
        assert rows, sheet.title
        starts = list(_starts(sheet, rows, found.lines, start))
        start = starts[-1]
        for row, first, end in zip(rows, starts, [*starts[1:], tables_end], strict=True):
            block = " ".join(found.lines[first:end])
            for column, cell in zip(sheet.names, row, strict=True):
                words = cell.split() if column in sheet.text else [cell]
                assert all(word in block for word in words), (sheet.title, width, column, cell, block)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_keeps_to_the_columns(width: int, commands: dict[str, Command], tmp_path: Path) -> None:
    for name in NAMES:
        for sheet in shown(commands[name], width, False, tmp_path).sheets:
            assert max(map(cell_len, rendered(sheet, width, True))) <= width, (name, sheet.title)


def test_every_command_and_every_table_is_among_them(commands: dict[str, Command], tmp_path: Path) -> None:
    assert tuple(commands) == NAMES
    groups = {name: each for name, each in cli.main.commands.items() if isinstance(each, click.Group)}
    known = {name: each for name, each in cli.main.commands.items() if name not in groups}
    known |= {f"{group} {name}": each for group, held in groups.items() for name, each in held.commands.items()}
    showing = {name for name, each in known.items() if each.callback and "print_parts(" in inspect.getsource(each.callback)}
    assert showing == {name.partition(" --")[0] for name in NAMES}
    called = set().union(*(shown(commands[name], 80, False, tmp_path).makers for name in NAMES))
    written = [
        node for module in (tables, search_tables, listings, table) for node in ast.walk(ast.parse(inspect.getsource(module)))
    ]
    makers = {each.name for each in written if isinstance(each, ast.FunctionDef) and "new_sheet(" in ast.unparse(each)}
    assert called == makers


def rendered(sheet: Sheet, width: int, terminal: bool) -> list[str]:
    """The lines of a table as a terminal of that width shows them."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal, highlight=False).print(sheet)
    return [Text.from_ansi(line).plain.rstrip() for line in file.getvalue().splitlines()]


def _starts(sheet: Sheet, rows: list[list[str]], lines: list[str], start: int) -> Iterator[int]:
    """The line of each row that names all of what it is, row after row, after line `start`."""
    for row in rows:
        keys = row[: sheet.keys]
        start = next((n for n in range(start + 1, len(lines)) if _names(sheet, keys, lines[n])), -1)
        assert start >= 0, (sheet.title, keys, lines)
        yield start


def _names(sheet: Sheet, keys: list[str], line: str) -> bool:
    """Whether a line begins with what a row is; lines of values are indented, but for numbers that stand to the right."""
    indented = line.startswith("  ") and sheet.names[0] not in sheet.right
    begins = re.match(rf"({re.escape(sheet.names[0])} )?{re.escape(keys[0])}([\s,]|$)", line.strip()) is not None
    return begins and not indented and all(key in line for key in keys)


def test_wide_terminals_get_tables_and_narrow_ones_rows_of_values(commands: dict[str, Command], tmp_path: Path) -> None:
    sheet = shown(commands["plan"], 80, False, tmp_path).sheets[0]
    wide, narrow = (rendered(sheet, width, True) for width in (200, 60))
    assert len(wide) == len(sheet.rows) + 4  # title, names, line, an empty one
    assert "  role token_embeddings · tier embeddings · bits 16" in "\n".join(narrow)


def test_long_names_are_cut_in_the_middle() -> None:
    sheet = new_sheet("", "file", "bytes", right=("bytes",))
    sheet.add_row("beginning/" + "x" * 100 + "/ending.gguf", "1")
    first, second, *_ = rendered(sheet, 40, True)
    assert first.startswith("beginning/xxxxxxxxxx…")
    assert first.endswith("x/ending.gguf")
    assert len(first) == 40
    assert second == "  bytes 1"


def test_a_terminal_s_width_is_taken() -> None:
    """A real one, by its size."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen([sys.executable, "-m", "tierexport", "recipes"], stdout=follower, env=environment)
    os.close(follower)
    lines = [Text.from_ansi(line).plain.rstrip() for line in _all_of(leader).splitlines()]
    assert process.wait() == 0
    assert max(map(cell_len, lines)) <= 60
    assert set(names_of("recipes")) <= set(lines)
