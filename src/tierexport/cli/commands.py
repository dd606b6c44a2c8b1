"""The commands: parse, call one function, print, map errors to exit codes.

Heavy imports stay inside the commands, so that `tierexport --help` is instant.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tierexport import __version__
from tierexport.base.errors import MachineError, TierexportError
from tierexport.base.registry import FORMATS
from tierexport.cli.quantize_command import quantize
from tierexport.cli.shipped_commands import docs, keys, recipes
from tierexport.cli.terminal import (
    complete,
    complete_keys,
    create_pr_option,
    examples,
    exit_with,
    json_option,
    max_time_option,
    model_argument,
    on_option,
    print_json,
    print_parts,
    say,
)  # fmt: skip
from tierexport.cli.vector_commands import vectors

if TYPE_CHECKING:
    from tierexport.base.workers import Workers

EXIT_STOPPED = 130
"""What shells say of a command that was ended by Ctrl-C: 128 and the signal's number."""
EXIT_UNEXPECTED = 70
"""EX_SOFTWARE of sysexits.h: a mistake of tierexport's own, not of its user's."""


class Group(click.Group):
    """Turns tierexport's own errors into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. With --debug, errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("tierexport: stopped; the same command goes on where it was", err=True)
            ctx.exit(EXIT_STOPPED)
        except TierexportError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"tierexport: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            click.echo(f"tierexport: can't use {what} (tierexport --debug … shows where)", err=True)
            ctx.exit(MachineError.exit_code)
        except Exception as error:
            if ctx.params.get("debug") or isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort)):
                raise
            click.echo(f"tierexport: unexpected {type(error).__name__}: {error} (tierexport --debug … shows where)", err=True)
            ctx.exit(EXIT_UNEXPECTED)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Export text-embedding models to GGUF and torchao in tiers, and prove what they are worth."""


for command in (quantize, vectors, recipes, keys, docs):
    main.add_command(command)

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path), shell_complete=complete("recipes"))
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_keys,
    help="Override a recipe key, e.g. tiers.middle.bits=8; tierexport keys lists them.",
)


@main.command(epilog=examples("plan recipes/three_tier.toml", "plan int8 --set model=ORG/NAME"))
@recipe_argument
@set_option
@json_option
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what RECIPE would build: every tensor, tier, type and byte. Reads no weights."""
    from tierexport import pipeline
    from tierexport.report import tables

    made = pipeline.plan(recipe, overrides)
    say(made.source.note)
    if as_json:
        formats = [fmt.as_json() for fmt in made.formats]
        print_json({"model": made.source.name, "recipe": made.recipe.name, "formats": formats})
        return
    print_parts(*(tables.plan_table(fmt) for fmt in made.formats), tables.totals_table(made))


@main.command(
    epilog=examples(
        "build recipes/three_tier.toml --out three_tier",
        "build four_bit --set rounding=distill --set calibration.texts=mine.jsonl",
    )
)
@recipe_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to make; artifacts/MODEL-RECIPE if not given, with what --set changes.",
)
@set_option
@click.option(
    "--despite",
    multiple=True,
    type=click.Choice(["conversion"]),
    help="Build a GGUF that llama.cpp reads otherwise, and say so.",
)
@json_option
def build(recipe: Path, out: Path | None, overrides: tuple[str, ...], despite: tuple[str, ...], as_json: bool) -> None:
    """Plan, check the conversion, calibrate, export and verify RECIPE."""
    from tierexport import pipeline
    from tierexport.report import tables

    made = pipeline.build(recipe, out, overrides, despite)
    say(made.manifest.model.note)
    if as_json:
        print_json(made.as_json())
    else:
        print_parts(tables.sizes_table(made.manifest), *tables.verification_tables(made.verification))
        click.echo(f"written to {made.out}")
    exit_with(made.verification)


@main.command(epilog=examples("verify three_tier --data scifact --device cpu", "verify their.gguf --model ORG/NAME"))
@click.argument("target", type=click.Path(exists=True, path_type=Path))
@click.option("--model", help="The fp32 model, for an artifact that tierexport did not build.")
@click.option("--data", multiple=True, metavar="SET", help="A BEIR folder or a hub's ORG/NAME; may be given several times.")
@click.option("--sts", metavar="FILE", help="Sentence pairs: score, sentence, sentence with tabs between.")
@click.option("--device", default="cpu,cuda", show_default=True, help="Where to run the artifacts.")
@click.option("--codec", type=click.Path(path_type=Path), help="Judge vectors as this codec stores them, too.")
@on_option
@json_option
def verify(
    target: Path, model: str | None, data: tuple[str, ...], sts: str | None, device: str, codec: Path | None,
    workers: "Workers", as_json: bool,
) -> None:  # fmt: skip
    """Compare the artifacts at TARGET with the fp32 model: fidelity, retrieval, gates."""
    from tierexport import pipeline
    from tierexport.recipe.schema import VerifySettings
    from tierexport.report import tables

    devices = device.split(",")
    if unknown := set(devices) - set(pipeline.DEVICES):
        raise click.BadParameter(f"{sorted(unknown)[0]!r} is not among {', '.join(pipeline.DEVICES)}", param_hint="--device")
    found = pipeline.verify_again(target, model, VerifySettings(data, sts), devices, codec, workers)
    if as_json:
        print_json(found.as_json())
    else:
        print_parts(*tables.verification_tables(found))
    exit_with(found)


@main.command(epilog=examples("compare artifacts/* --picture sizes.svg", "compare three_tier int8 --json"))
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--picture", type=click.Path(path_type=Path), default="compare.svg", show_default=True, help="svg, png or pdf.")
@json_option
def compare(folders: tuple[Path, ...], picture: Path, as_json: bool) -> None:
    """Set built artifacts side by side: bytes against fidelity and retrieval, as table and picture."""
    from tierexport import pipeline
    from tierexport.report import comparison, tables

    compared = pipeline.compare_folders(folders, picture)
    if as_json:
        print_json(comparison.as_json(compared) | {"picture": str(picture)})
    else:
        print_parts(tables.compare_table(compared))
        click.echo(f"drawn to {picture}")


@main.command(name="map", epilog=examples("map all-MiniLM-L6-v2 --picture layers.svg", "map ORG/NAME --toml"))
@model_argument
@click.option("--picture", type=click.Path(path_type=Path), default="map.svg", show_default=True, help="svg, png or pdf.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the [map] part of models/NAME.toml and nothing else.")
@on_option
@json_option
def map_layers(model: str, picture: Path, as_toml: bool, workers: "Workers", as_json: bool) -> None:
    """Show which layers of MODEL do the work, and what rounding each one alone costs."""
    import tomli_w

    from tierexport import pipeline
    from tierexport.report import search_tables

    found = pipeline.map_model(model, picture, workers)
    if as_json:
        print_json(found.as_json())
    elif as_toml:
        click.echo(tomli_w.dumps(found.as_toml()), nl=False)
    else:
        print_parts(search_tables.map_table(found), *search_tables.map_notes(found))
        click.echo(f"drawn to {picture}")


@main.command(
    epilog=examples(
        "search all-MiniLM-L6-v2 --bits 5.8 --out mini_5.8.toml", "search ORG/NAME --frontier --picture frontier.svg"
    )
)
@model_argument
@click.option("--bits", type=click.FloatRange(0, min_open=True), help="Budget: stored bits per parameter, of the whole file.")
@click.option("--bytes", "size", type=click.IntRange(1), help="Budget: bytes of the whole file.")
@max_time_option
@click.option("--lossless", is_flag=True, help="The smallest file whose retrieval on --data is shown to lose less than --loss.")
@click.option("--loss", type=click.FloatRange(0, 1, min_open=True), help="Of --lossless: NDCG@10 to lose at most; 0.005.")
@click.option("--frontier", is_flag=True, help="Draw bytes against loss instead, beside llama.cpp's own types.")
@click.option(
    "--data", multiple=True, metavar="SET", help="Of --lossless: BEIR folders or ORG/NAMEs; if none, the built-in set."
)
@click.option("--format", "fmt", type=click.Choice(list(FORMATS)), default="gguf", show_default=True, help="What is built.")
@click.option("--out", type=click.Path(path_type=Path), help="Recipe to write; MODEL-BUDGET.toml if not given.")
@click.option("--picture", type=click.Path(path_type=Path), default="frontier.svg", show_default=True, help="Of --frontier.")
@on_option
@json_option
def search(
    model: str, bits: float | None, size: int | None, max_time: float | None, lossless: bool, loss: float | None,
    frontier: bool, data: tuple[str, ...], fmt: str, out: Path | None, picture: Path, workers: "Workers", as_json: bool,
) -> None:  # fmt: skip
    """Find the recipe of the least loss for MODEL within a budget; write it, build it, verify it."""
    from tierexport import pipeline
    from tierexport.report import search_tables, tables
    from tierexport.search.find import LOSS

    if (bits is not None) + (size is not None) + lossless + frontier != 1:
        raise click.UsageError("name one of --bits, --bytes, --lossless and --frontier")
    if (loss is not None or data) and not lossless:
        raise click.UsageError("--loss and --data say what --lossless is: name it, too")
    if max_time is not None and bits is None and size is None:
        raise click.UsageError("--max-time goes with --bits or --bytes: name one, too")
    if frontier:
        drawn = pipeline.draw_frontier(model, picture, workers, fmt)
        if as_json:
            print_json(drawn.as_json())
        else:
            print_parts(search_tables.frontier_table(drawn))
            click.echo(f"drawn to {picture}")
        return
    if lossless:
        found, built = pipeline.search_lossless(model, data or ("builtin",), loss or LOSS, out, workers, fmt)
    else:
        found, built = pipeline.search(model, bits, size, out, workers, max_time, fmt)
    if as_json:
        print_json({**found.as_json(), "out": str(built.out), **built.verification.as_json()})
    else:
        print_parts(search_tables.found_table(found), *tables.verification_tables(built.verification))
        click.echo(f"recipe written to {found.recipe}, built in {built.out}")
    exit_with(built.verification)


@main.command(epilog=examples("inspect model.gguf", "inspect ORG/NAME:model.gguf --json"))
@click.argument("target", metavar="PATH|ORG/NAME[@REVISION][:FILE]")
@json_option
def inspect(target: str, as_json: bool) -> None:
    """Show what a GGUF file, safetensors, an artifact folder or a hub's repository really holds.

    Reads headers, no weights; on a hub it downloads nothing else.
    """
    from tierexport.formats.inspect import inspect as look
    from tierexport.report import tables

    found = look(target)
    if as_json:
        print_json({"artifacts": [each.as_json() for each in found]})
    else:
        print_parts(*(part for each in found for part in tables.inspection_parts(each)))


@main.command(epilog=examples("publish three_tier --to hf:ORG/NAME --dry-run", "publish 12MB 16MB 25MB --to hf:ORG/NAME-GGUF"))
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--to", "target", required=True, metavar="PLACE", help="hf:ORG/NAME, modelscope:ORG/NAME or dir:PATH.")
@click.option("--private", is_flag=True, help="A repository that is made now is private.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit on, not the main one; hf: makes it where there is none.")
@click.option("--despite", multiple=True, metavar="NAME", help="Overrule an objection; a refusal names each.")
@click.option("--dry-run", is_flag=True, help="Show what would be uploaded, and upload nothing.")
@create_pr_option
@json_option
def publish(
    folders: tuple[Path, ...], target: str, private: bool, revision: str | None, despite: tuple[str, ...], dry_run: bool,
    create_pr: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upload a verified artifact folder, or several sizes of a model, in one commit.

    What is there already is not sent again.
    """
    from tierexport.publish import several
    from tierexport.publish.table import publication_table

    done = several.publish(folders, target, private, revision, despite, dry_run, create_pr)
    if as_json:
        print_json(done.as_json())
        return
    print_parts(publication_table(done))
    for objection in done.overruled:
        click.echo(f"tierexport: overruled: {objection.name}: {objection.reason}", err=True)
    click.echo(f"{done.outcome} (--dry-run)" if dry_run and done.sent else done.outcome)


@main.command(epilog=examples("doctor", "doctor --json"))
@json_option
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and how to get the rest."""
    from dataclasses import asdict

    from tierexport.cli.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            click.echo(f"{finding.mark} {finding.what}: {finding.found}")
            if finding.remedy and not finding.ok:
                click.echo(f"    {finding.remedy}")
    if any(finding.needed and not finding.ok for finding in findings):
        sys.exit(MachineError.exit_code)
