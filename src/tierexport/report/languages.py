"""Fidelity by language as rows, for the terminal, the page and the card."""

from dataclasses import dataclass

from tierexport.artifact.verdicts import Verification
from tierexport.model.languages import language_name
from tierexport.report.figures import with_interval


@dataclass(frozen=True)
class LanguageRow:
    """A language, how many sentences of it were judged, and what each artifact's column says."""

    name: str
    texts: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class LanguageTable:
    """A column for each artifact and device, a row for each language, the least faithful in the first artifact first."""

    columns: tuple[str, ...]
    rows: tuple[LanguageRow, ...]


def language_table(found: Verification) -> LanguageTable | None:
    """Mean cosines to fp32 with their 95 % intervals; None where the screen was in one language."""
    judged = [verdict for verdict in found.verdicts if verdict.languages]
    if not judged:
        return None
    rows = sorted(zip(*(verdict.languages for verdict in judged), strict=True), key=lambda each: each[0].cos_mean)
    return LanguageTable(
        tuple(f"{verdict.label}, {verdict.device}" for verdict in judged),
        tuple(
            LanguageRow(
                language_name(row[0].language),
                row[0].texts,
                tuple(with_interval(each.cos_mean, each.cos_mean_ci) for each in row),
            )
            for row in rows
        ),
    )
