"""Writes what a verification found into an artifact folder: figures, card, page, and the manifest that names the files."""

from collections.abc import Mapping
from pathlib import Path

from tierexport.artifact.folder import CARD, PAGE, RECIPE, VERIFICATION
from tierexport.artifact.manifest import Manifest, write_manifest
from tierexport.artifact.verdicts import Verification
from tierexport.base.files import write_json, write_whole
from tierexport.report.card import render_card
from tierexport.report.page import render_page


def write_reports(folder: Path, manifest: Manifest, found: Verification, files: Mapping[str, str]) -> Manifest:
    """Write what was found of `files`, SHA-256 by path; the manifest, which is returned, comes last and names them.

    Nothing is written before everything is rendered. Raises MachineError when the folder can't be written.
    """
    proven = manifest.proven(found.passed, files)
    card = render_card(proven, found, (folder / RECIPE).read_text("utf-8"))
    page = render_page(proven, found)
    write_json(folder / VERIFICATION, found.as_json())
    write_whole(folder / CARD, card)
    write_whole(folder / PAGE, page)
    write_manifest(folder, proven)
    return proven
