"""Tables for terminals of any width: where one does not fit, each row becomes a few lines, and nothing of it is lost."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

TEXT_WIDTH = 28
"""Characters that a column of sentences gets at least; it is wrapped, as no other is."""

INDENT, BETWEEN = 2, " · "
"""Spaces before a row's values where it takes several lines, and what stands between two of them."""


@dataclass
class Sheet:
    """Rows of cells, which may have rich's markup. The first `keys` columns say which row it is; those in `right` hold
    numbers, those in `text` sentences.
    """

    title: str
    names: tuple[str, ...]
    right: frozenset[str]
    keys: int
    text: frozenset[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """A row; cells that are left out are empty."""
        self.rows.append((*cells, *[""] * (len(self.names) - len(cells))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """A table where all of it fits, or else the rows one under another."""
        if self.title:
            yield Text.from_markup(self.title, style="bold")
        if self._width() <= options.max_width:
            yield self._table()
        else:
            for row in self.rows:
                yield from self._stacked(row, options.max_width)
        yield ""

    def _width(self) -> int:
        """Characters that the table takes at least: what stands between two columns is three wide."""
        return sum(map(self._column_width, range(len(self.names)))) + 3 * (len(self.names) - 1)

    def _column_width(self, column: int) -> int:
        widest = max(_width_of(cell) for cell in (self.names[column], *(row[column] for row in self.rows)))
        return min(widest, TEXT_WIDTH) if self.names[column] in self.text else widest

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, name in enumerate(self.names):
            table.add_column(
                name,
                justify="right" if name in self.right else "left",
                no_wrap=name not in self.text,
                min_width=self._column_width(number),
            )
        for row in self.rows:
            table.add_row(*row)
        return table

    def _stacked(self, row: Sequence[str], width: int) -> Iterator[RenderableType]:
        """A row as a line that says which it is, and its values under their names."""
        cells = list(zip(self.names, row, strict=True))
        named = [f"{name} {cell}" if _plain(cell).isdecimal() else cell for name, cell in cells[: self.keys] if cell]
        yield _fitted(Text.from_markup(", ".join(named), style="bold"), width)
        values = [Text.from_markup(f"{name} {cell}".strip()) for name, cell in cells[self.keys :] if cell]
        for line in _lines(values, width - INDENT):
            yield Padding(line, (0, 0, 0, INDENT), expand=False)


def new_sheet(title: str, *names: str, right: Iterable[str] = (), keys: int = 1, text: Iterable[str] = ()) -> Sheet:
    """A sheet without rows."""
    return Sheet(title, names, frozenset(right), keys, frozenset(text))


def _plain(cell: str) -> str:
    """A cell without its markup."""
    return Text.from_markup(cell).plain


def _width_of(cell: str) -> int:
    return cell_len(_plain(cell))


def _fitted(line: Text, width: int) -> Text:
    """A line, cut in the middle where it is too long: beginnings and ends of names differ most."""
    if cell_len(line.plain) <= width:
        return line
    before, after = width // 2, width - width // 2 - 1
    return line[:before] + Text("…") + line[len(line) - after :]


def _lines(values: Sequence[Text], width: int) -> Iterator[Text]:
    """Values joined to lines of at most `width` characters; a longer one has lines of its own."""
    line = Text()
    for value in values:
        joined = line + BETWEEN + value if line else value
        if line and cell_len(joined.plain) > width:
            yield line
            joined = value
        line = joined
    if line:
        yield line
