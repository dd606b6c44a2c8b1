"""A publication as a table for the terminal."""

from tierexport.publish.publication import Publication
from tierexport.report.sheet import Sheet, new_sheet

COLOURS = {"new": "green", "changed": "yellow", "removed": "red", "same": "dim"}
"""By `Change.what`."""


def publication_table(done: Publication) -> Sheet:
    """Every file of a release beside what the hub has."""
    table = new_sheet(done.target, "file", "bytes", "there", right=("bytes",))
    for change in done.changes:
        table.add_row(change.path, f"{change.bytes:,}", f"[{COLOURS[change.what]}]{change.what}[/]")
    return table
