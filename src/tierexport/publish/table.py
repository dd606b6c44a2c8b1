"""A publication as a table for the terminal."""

from rich.table import Table

from tierexport.publish.publication import Publication
from tierexport.report.tables import new_table

COLOURS = {"new": "green", "changed": "yellow", "removed": "red", "same": "dim"}
"""By `Change.what`."""


def publication_table(done: Publication) -> Table:
    """Every file of a release beside what the hub has."""
    table = new_table(done.target, "file", "bytes", "there", right=("bytes",))
    for change in done.changes:
        table.add_row(change.path, f"{change.bytes:,}", f"[{COLOURS[change.what]}]{change.what}[/]")
    return table
