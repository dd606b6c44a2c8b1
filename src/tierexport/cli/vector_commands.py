"""The commands that quantize vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tierexport.cli.terminal import examples, json_option, model_argument, on_option, print_json, print_parts
from tierexport.recipe.choices import LEVELS, SCALINGS, WIDEST

if TYPE_CHECKING:
    from tierexport.base.workers import Workers


@click.group(epilog=examples("vectors fit all-MiniLM-L6-v2 --level binary", "vectors eval all-MiniLM-L6-v2 --help"))
def vectors() -> None:
    """Quantize what a model puts out: vectors of 8, 4, 3, 2 or 1 bits, or three values, a dimension, and training for them."""


level_option = click.option("--level", required=True, type=click.Choice(LEVELS), help="How precise vectors are.")
scaling_option = click.option(
    "--scaling", default=SCALINGS[0], show_default=True, type=click.Choice(SCALINGS), help="How bounds are chosen."
)
asymmetric_option = click.option("--asymmetric", is_flag=True, help="Documents are quantized, queries not.")
widen_option = click.option(
    "--widen", default=1, show_default=True, type=click.IntRange(1, WIDEST), help="So many times as many dimensions."
)
pairs_option = click.option(
    "--pairs", required=True, type=click.Path(path_type=Path), help='A .jsonl of "query" and "positive".'
)
what_option = click.option(
    "--what", default="head", show_default=True, type=click.Choice(("head", "lora", "model")), help="What is trained."
)
contrast_option = click.option(
    "--contrast", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="The contrastive loss's share."
)
steps_option = click.option("--steps", default=10_000, show_default=True, type=click.IntRange(1), help="Steps to train.")
every_option = click.option("--every", default=500, show_default=True, type=click.IntRange(1), help="Between checkpoints.")
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of the order of pairs."
)


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """What is trained, how wide and for how long: the same wherever something is."""
    for option in (seed_option, every_option, steps_option, contrast_option, what_option, widen_option):
        command = option(command)  # the last to be added stands first in the help
    return command


@vectors.command(
    name="fit",
    epilog=examples(
        "vectors fit all-MiniLM-L6-v2 --level int8",
        "vectors fit ORG/NAME --level int2 --scaling lloyd --dimensions 256",
        "vectors fit ORG/NAME --level binary --widen 2 --out binary.safetensors",
    ),
)
@model_argument
@level_option
@scaling_option
@click.option("--texts", default="builtin", show_default=True, help="builtin, a .txt or .jsonl file, or a BEIR folder.")
@click.option("--count", default=400, show_default=True, type=click.IntRange(1), help="How many texts.")
@click.option(
    "--dimensions", type=click.IntRange(1), show_default="all", help="How many of the first dimensions are kept (Matryoshka)."
)
@click.option("--per-vector", is_flag=True, help="Ranges as multiples of each vector's own size.")
@click.option("--rotate", is_flag=True, help="A random rotation before everything else.")
@widen_option
@asymmetric_option
@click.option("--out", type=click.Path(path_type=Path), default="codec.safetensors", show_default=True, help="Codec to write.")
@json_option
def fit_vectors(model: str, texts: str, count: int, out: Path, as_json: bool, **settings: Any) -> None:
    """Choose the bounds of a codec for MODEL's vectors."""
    from tierexport.recipe.schema import VectorSettings
    from tierexport.vectors import commands

    codec = commands.fit_codec(model, VectorSettings(**settings), texts, count, out)
    _say_written(as_json, out, **codec.as_json())


@vectors.command(
    name="search",
    epilog=examples(
        "vectors search all-MiniLM-L6-v2 --bytes 64",
        "vectors search ORG/NAME --bytes 96 --data scifact --data squad --asymmetric",
        "vectors search ORG/NAME --bytes 96 --texts mine.jsonl --out mine.safetensors --picture mine.svg",
    ),
)
@model_argument
@click.option("--bytes", "budget", required=True, type=click.IntRange(1), help="Bytes that a vector may take.")
@click.option("--data", multiple=True, metavar="SET", help="A BEIR folder or a hub's ORG/NAME; several times.")
@click.option("--texts", help="builtin, a .txt or .jsonl file, or a BEIR folder: ranked as fp32 ranks them.")
@asymmetric_option
@click.option("--out", type=click.Path(path_type=Path), default="codec.safetensors", show_default=True, help="Codec to write.")
@click.option(
    "--picture", type=click.Path(path_type=Path), default="frontier.svg", show_default=True, help="Bytes against NDCG@10."
)
@on_option
@json_option
def search_vectors(
    model: str, budget: int, data: tuple[str, ...], texts: str | None, asymmetric: bool, out: Path, picture: Path,
    workers: "Workers", as_json: bool,
) -> None:  # fmt: skip
    """Find the best codec for MODEL's vectors within --bytes, on --data or --texts, or on the built-in set."""
    from tierexport import pipeline
    from tierexport.report import search_tables

    named = data if data or texts else ("builtin",)
    found = pipeline.search_codec(model, budget, named, texts, asymmetric, out, picture, workers)
    if as_json:
        print_json({"out": str(out), "picture": str(picture), **found.as_json()})
    else:
        print_parts(search_tables.codecs_table(found))
        click.echo(f"the last one is written to {out}, drawn to {picture}")


@vectors.command(
    name="encode",
    epilog=examples(
        "vectors encode all-MiniLM-L6-v2 mine.jsonl --codec codec.safetensors",
        "vectors encode binary_model asked.txt --codec binary_model/codec.safetensors --queries",
    ),
)
@model_argument
@click.argument("texts")
@click.option("--codec", required=True, type=click.Path(path_type=Path), help="What fit or train wrote.")
@click.option("--queries", is_flag=True, help="The texts are queries, and get their prompt.")
@click.option("--out", type=click.Path(path_type=Path), default="vectors.safetensors", show_default=True, help="File to write.")
@on_option
@json_option
def encode_vectors(model: str, texts: str, codec: Path, queries: bool, out: Path, workers: "Workers", as_json: bool) -> None:
    """Encode TEXTS (a .txt or .jsonl file, or a BEIR folder) with MODEL, and pack the vectors."""
    from tierexport.vectors import commands

    found, count = commands.encode_texts(model, texts, codec, "query" if queries else "passage", out, workers)
    _say_written(as_json, out, level=found.level, vectors=count, bytes=count * found.bytes)


@vectors.command(
    name="train",
    epilog=examples(
        "vectors train all-MiniLM-L6-v2 --pairs pairs.jsonl --level binary --out binary_model",
        "vectors train ORG/NAME --pairs pairs.jsonl --level int4 --asymmetric --what lora --out int4_model",
    ),
)
@model_argument
@pairs_option
@level_option
@scaling_option
@asymmetric_option
@training_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model folder to make.")
@json_option
def train_vectors(
    model: str,
    pairs: Path,
    level: str,
    scaling: str,
    asymmetric: bool,
    widen: int,
    what: str,
    out: Path,
    as_json: bool,
    **schedule: Any,
) -> None:
    """Train MODEL, a head or a LoRA adapter for vectors of a level; makes a model folder with its codec."""
    from tierexport.training import models
    from tierexport.training.goals import Goal
    from tierexport.training.trainees import schedule_for

    goal = Goal(level, scaling, not asymmetric, widen)
    trained = models.train_model(model, pairs, what, goal, schedule_for(what, **schedule), out)
    _say_written(as_json, out, level=level, best_step=trained.step, scores=list(trained.scores))


@vectors.command(
    name="eval",
    epilog=examples(
        "vectors eval all-MiniLM-L6-v2 --pairs pairs.jsonl --data scifact --data squad",
        "vectors eval ORG/NAME --pairs pairs.jsonl --data scifact --steps 2000 --json",
    ),
)
@model_argument
@pairs_option
@click.option("--data", multiple=True, required=True, metavar="SET", help="A BEIR folder or a hub's ORG/NAME; several times.")
@training_options
@json_option
def evaluate_vectors(
    model: str, pairs: Path, data: tuple[str, ...], widen: int, what: str, as_json: bool, **schedule: Any
) -> None:
    """Compare nine ways to quantize MODEL's vectors on retrieval sets: untrained, trained, and against fp32."""
    from tierexport.report import tables
    from tierexport.training import conditions
    from tierexport.training.trainees import schedule_for

    found = conditions.evaluate(model, data, pairs, what, schedule_for(what, **schedule), widen)
    for note in found.notes:
        click.echo(f"tierexport: {note}", err=True)
    if as_json:
        print_json(found.as_json())
    else:
        print_parts(tables.vectors_table([row.as_json() for row in found.rows], found.similarity.words))


def _say_written(as_json: bool, out: Path, **facts: Any) -> None:
    """Say where something was written, and what it is."""
    if as_json:
        print_json({"out": str(out), **facts})
    else:
        click.echo(f"written to {out}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
