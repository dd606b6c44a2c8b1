"""The commands that show what comes with tierexport: recipes, the keys that they may have, documents."""

import click
from click.shell_completion import CompletionItem

from tierexport.cli.terminal import examples, json_option, print_json, print_parts


@click.command(epilog=examples("recipes", "recipes --json"))
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes and the descriptions of models that are shipped, by the names that commands take."""
    from tierexport.base.shipped import names_of
    from tierexport.recipe.read import shipped_recipes
    from tierexport.report import listings

    known = shipped_recipes()
    if as_json:
        print_json({"recipes": [each.as_json() for each in known], "models": names_of("models")})
    else:
        print_parts(listings.recipes_table(known), listings.models_table(names_of("models")))


@click.command(epilog=examples("keys", "keys verify"))
@click.argument("beginning", default="")
@json_option
def keys(beginning: str, as_json: bool) -> None:
    """List the keys that a recipe may have, and --set may name: all, or those that begin so."""
    from dataclasses import asdict

    from tierexport.recipe.schema import recipe_keys
    from tierexport.report import listings

    found = {path: key for path, key in recipe_keys().items() if key.meaning and path.startswith(beginning)}
    if not found:
        raise click.BadParameter(f"no key begins with {beginning!r}")
    if as_json:
        print_json({path: asdict(key) for path, key in found.items()})
    else:
        print_parts(listings.keys_table(found))


def _names(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Completion with the names of documents."""
    from tierexport.base.shipped import names_of

    return [CompletionItem(name) for name in names_of("docs", ".md") if name.startswith(typed)]


@click.command(epilog=examples("docs", "docs tutorial"))
@click.argument("name", required=False, shell_complete=_names)
def docs(name: str | None) -> None:
    """List the documents that come with tierexport, or show one."""
    from tierexport.base.shipped import names_of, shipped
    from tierexport.report import listings

    known = names_of("docs", ".md")
    if name is None:
        titles = {each: (shipped("docs") / f"{each}.md").read_text("utf-8").partition("\n")[0].lstrip("# ") for each in known}
        print_parts(listings.documents_table(titles))
    elif name in known:
        click.echo_via_pager((shipped("docs") / f"{name}.md").read_text("utf-8").rstrip())
    else:
        raise click.BadParameter(f"there is no document {name!r}; there are {', '.join(known)}")
