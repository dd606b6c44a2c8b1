"""Texts that lie beside the code, in a package of tierexport's."""

from importlib import resources


def packaged_text(package: str, name: str) -> str | None:
    """A text file of a package, None where it has none of that name."""
    file = resources.files(package).joinpath(name)
    return file.read_text("utf-8") if file.is_file() else None
