"""Progress of long work: on stderr, and only where somebody watches it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True)


def note(what: str) -> None:
    """One line on stderr that the user should know of, watched or not."""
    sys.stderr.write(f"tierexport: note: {what}\n")


class Stage:
    """The running stage, as the code that does the work sees it."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None)

    def total(self, steps: int) -> None:
        """Say how many steps there are."""
        self._progress.update(self._task, total=steps)

    def say(self, what: str) -> None:
        """Say what is being done, in place of the title."""
        self._progress.update(self._task, description=what[:60])

    def step(self, steps: int = 1) -> None:
        """Say that some are done."""
        self._progress.advance(self._task, steps)


@contextmanager
def stage(title: str) -> Iterator[Stage]:
    """Show a line with a bar while the stage runs, and how long it took when it ends."""
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        running = Stage(progress, title)
        yield running
        task = progress.tasks[0]
        progress.update(task.id, total=task.total or 1, completed=task.total or 1)
