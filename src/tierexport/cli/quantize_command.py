"""The command that takes a model and a size, and needs no recipe."""

from pathlib import Path

import click

from tierexport.cli.terminal import (
    create_pr_option,
    examples,
    exit_with,
    json_option,
    max_time_option,
    model_argument,
    print_json,
    print_parts,
    say,
)


@click.command(
    epilog=examples(
        "quantize all-MiniLM-L6-v2 --size 16MB",
        "quantize ORG/NAME --sizes 12MB,16MB,25MB --push hf:ORG/NAME-GGUF --create-pr",
        "quantize ORG/NAME --like Q4_K_M --data scifact --push hf:ORG/NAME-GGUF",
    )
)
@model_argument
@click.option("--size", help="The GGUF takes no more than this: 16MB, 15.5MiB, 1.2GB.")
@click.option("--sizes", metavar="SIZE,SIZE…", help="Several sizes, which --push puts into one repository.")
@click.option("--bits", type=float, help="The same in bits per parameter, of the whole file.")
@click.option("--like", metavar="TYPE", help="No more than llama-quantize's file of a type, as Q4_K_M.")
@max_time_option
@click.option("--formats", default="gguf", show_default=True, help="gguf, or gguf,torchao.")
@click.option("--texts", metavar="FILE", help="What to calibrate on: a .txt or .jsonl file, or a BEIR folder.")
@click.option("--data", multiple=True, metavar="SET", help="A BEIR folder or ORG/NAME to score; may be given several times.")
@click.option("--base-model", metavar="ORG/NAME", help="What a model in a folder was made from, for the card.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make; artifacts/MODEL-TIER_SIZE if not given.")
@click.option("--push", metavar="PLACE", help="Publish it, once verified: hf:ORG/NAME, modelscope:ORG/NAME or dir:PATH.")
@create_pr_option
@json_option
def quantize(
    model: str, size: str | None, sizes: str | None, bits: float | None, like: str | None, max_time: float | None, formats: str,
    texts: str | None, data: tuple[str, ...], base_model: str | None, out: Path | None, push: str | None, create_pr: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make MODEL small and prove what it is worth: search for the best types, build, verify, publish.

    Without --size, --bits and --like it is the smallest whose retrieval is shown to lose less than 0.005 of NDCG@10.
    """
    from tierexport import quantizing
    from tierexport.base.sizes import parse_size
    from tierexport.report import tables
    from tierexport.search.request import Request

    if size and sizes:
        raise click.UsageError("name --size or --sizes, not both")
    named = [parse_size(each) for each in (size or sizes or "").split(",")] if size or sizes else [None]
    more = (bits, like, tuple(formats.split(",")), texts, data or ("builtin",), base_model, max_time)
    made, published = quantizing.quantize([Request(model, each, *more) for each in named], out, push, create_pr)
    say(made[0].build.manifest.model.note)
    if as_json:
        publication = published and published.as_json()
        whole = made[0].as_json() if len(made) == 1 else {"sizes": [each.as_json() for each in made]}
        print_json({**whole, "publication": publication})
    else:
        for each in made:
            print_parts(tables.sizes_table(each.build.manifest), *tables.verification_tables(each.build.verification))
        for each in made:
            click.echo(f"written to {each.build.out}")
        if published:
            click.echo(published.outcome)
        for each in made:
            click.echo(each.summary)
    for each in made:
        exit_with(each.build.verification)
