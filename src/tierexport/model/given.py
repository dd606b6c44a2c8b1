"""A model that is given in memory, as a folder that every stage can read."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tierexport.base.digests import folder_digests, value_digest
from tierexport.base.errors import SourceError
from tierexport.base.files import writing
from tierexport.base.locks import locked
from tierexport.base.paths import cache_dir
from tierexport.model.description import FILE_NAME

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def kept(model: "SentenceTransformer", name: str) -> Path:
    """The folder, called `name`, that a model is saved to in the cache; the same model lies there once.

    Raises SourceError for a name that can't name files, MachineError where the cache can't be written.
    """
    if not re.fullmatch(FILE_NAME, name):
        raise SourceError(f"{name!r} can't name a model (letters, digits, . _ - only)")
    place = cache_dir() / "given"
    with writing(place), locked(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            saved = Path(scratch) / name
            model.save_pretrained(str(saved), create_model_card=False)
            digest = value_digest(folder_digests(saved))[:16]
            if not (folder := place / digest / name).exists():
                folder.parent.mkdir(exist_ok=True)
                shutil.move(saved, folder)
    return folder
