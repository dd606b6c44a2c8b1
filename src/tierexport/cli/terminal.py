"""What the commands share: arguments, completion, examples, and printing."""

import json
import sys
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem


def examples(*lines: str) -> str:
    """The end of a command's help, its lines left as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  tierexport {line}" for line in lines)


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completion with the names of shipped recipes or models, and with what the shell knows of files."""

    def names(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        from tierexport.base.shipped import names_of

        found = [CompletionItem(name) for name in names_of(kind) if name.startswith(typed)]
        return [*found, CompletionItem(typed, type="file")]

    return names


model_argument = click.argument("model", shell_complete=complete("models"))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def print_parts(*parts: Any) -> None:
    """Tables and texts on stdout, as wide as the terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for part in parts:
        console.print(part)
