"""What the commands share: arguments, completion, examples, printing, and what a verification ends with."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from tierexport.base.workers import Workers

EXIT_GATE_FAILED = 1


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


def complete_keys(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """Completion with the keys of a recipe: its own tiers and rules where it is named already and can be read."""
    from tierexport.base.errors import RecipeError
    from tierexport.recipe.read import load_document
    from tierexport.recipe.schema import settable_keys

    named = [context.params.get("recipe"), *context.args]  # in front of an option without a value, it is not parsed yet
    try:
        document = load_document(Path(next(filter(None, named))))
    except (StopIteration, RecipeError):
        document = {}
    return [CompletionItem(f"{key}=") for key in settable_keys(document) if key.startswith(typed)]


model_argument = click.argument("model", shell_complete=complete("models"))
create_pr_option = click.option("--create-pr", is_flag=True, help="hf: as a pull request, which somebody there merges.")


def _workers(context: click.Context, _: click.Parameter, where: str | None) -> "Workers | None":
    """What does the work, until the command ends."""
    from tierexport.base.cluster import workers_on

    return None if context.resilient_parsing else context.with_resource(workers_on(where))


on_option = click.option(
    "--on", "workers", envvar="TIEREXPORT_ON", metavar="ray[:ADDRESS]", callback=_workers,
    help="Spread the work over a Ray cluster; TIEREXPORT_ON says the same.",
)  # fmt: skip
max_time_option = click.option(
    "--max-time", type=click.FloatRange(0, min_open=True), metavar="SHARE",
    help="Budget, too: the time of llama.cpp on this machine, as a share of that of Q8_0.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def print_parts(*parts: Any) -> None:
    """Tables and texts on stdout, as wide as the terminal, or as COLUMNS says."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if known else 160, highlight=False)
    for part in parts:
        console.print(part)


def say(note: str | None) -> None:
    """What has to be known of the source, on stderr."""
    if note:
        click.echo(f"tierexport: {note}", err=True)


def exit_with(found: Any) -> None:
    """Say what was unusual in a retrieval set, and why each artifact was not verified; exit 1 when that is a failure."""
    for note in found.notes:
        click.echo(f"tierexport: {note}", err=True)
    for verdict in found.verdicts:
        if verdict.status == "failed":
            click.echo(f"tierexport: {verdict.format} on {verdict.device}: {verdict.status}: {verdict.reason}", err=True)
        for probe in (each for each in verdict.probes if each.required and not each.tokens_equal):
            click.echo(
                f"tierexport: {verdict.format}: probe {probe.name!r}: tokens part {probe.parting}: {probe.cause}", err=True
            )
        for example in verdict.token_examples:
            click.echo(f"tierexport: {verdict.format} on {verdict.device}: other tokens: {example}", err=True)
    for name in found.ran_nowhere:
        click.echo(f"tierexport: {name} ran on no device, so nothing is proven", err=True)
    for gate in found.gates:
        if not gate.passed:
            value = "was not measured" if gate.value is None else f"is {gate.value:.5f}"
            click.echo(f"tierexport: {gate.format} on {gate.device}: the gate {gate.name} failed: it {value}", err=True)
    if not found.passed:
        sys.exit(EXIT_GATE_FAILED)
