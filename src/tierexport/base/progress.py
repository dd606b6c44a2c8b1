"""Progress of long work, on stderr: a bar with the time left where somebody watches it, a plain line per stage elsewhere."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)

LONG = 30.0
"""Seconds from which on a stage says, where no bar is shown, how long it will take."""

ENOUGH = 0.03
"""The share of a stage that has to be done before the rest is estimated: a layer of a deep model."""


def note(what: str) -> None:
    """One line on stderr that the user should know of, watched or not."""
    sys.stderr.write(f"tierexport: note: {what}\n")


class Stage:
    """The running stage, as the code that does the work sees it."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._title = title
        self._started = self._began = time.monotonic()
        self._estimated = False
        self._task = progress.add_task(title, total=None)

    def total(self, steps: int) -> None:
        """Say how many steps there are; their time is estimated from now on."""
        self._began = time.monotonic()
        self._progress.update(self._task, total=steps)

    def say(self, what: str) -> None:
        """Say what is being done, in place of the title."""
        self._progress.update(self._task, description=what[:60])

    def step(self, steps: int = 1) -> None:
        """Say that some are done."""
        self._progress.advance(self._task, steps)
        task = self._progress.tasks[0]
        if not self._estimated and task.total and task.completed >= ENOUGH * task.total:
            self._estimated = True
            left = (time.monotonic() - self._began) * (task.total / task.completed - 1)
            if left >= LONG:
                self._tell(f"about {duration(left)} more")

    def end(self) -> None:
        """Say that all is done."""
        task = self._progress.tasks[0]
        self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)
        self._tell(duration(time.monotonic() - self._started))

    def _tell(self, what: str) -> None:
        """A line on the stage, where no bar is shown."""
        if self._progress.disable:
            sys.stderr.write(f"tierexport: {self._title}: {what}\n")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@contextmanager
def stage(title: str) -> Iterator[Stage]:
    """Show a line with a bar while the stage runs, the time that is left, and how long it took when it ends."""
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        running = Stage(progress, title)
        yield running
        running.end()
    gc.collect()  # a model's modules refer to each other, and its memory would wait for the collector
