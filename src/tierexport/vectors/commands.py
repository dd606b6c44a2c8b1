"""Fits a codec for a model, and encodes texts by one."""

import json
from pathlib import Path

from tierexport.artifact.folder import CODEC
from tierexport.artifact.manifest import MANIFEST
from tierexport.base.errors import VectorError
from tierexport.base.workers import HERE, Workers
from tierexport.datasets.calibration import calibration_texts, texts_in
from tierexport.recipe.schema import VectorSettings
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import open_encoder
from tierexport.vectors.storage import is_codec, read_codec, write_codec

TRAINING = "training.json"
"""The file in a trained model's folder that says for what and how it was trained."""


def fit_codec(model: str, settings: VectorSettings, texts: str, count: int, out: Path) -> Codec:
    """A codec for a model's vectors, its bounds from texts as a recipe's calibration names them, written to `out`.

    Raises InputError, also where `out` is something else than a codec.
    """
    check_free(out)
    chosen = [text.text for text in calibration_texts(texts, count)]
    codec = open_encoder(model).fit(settings, chosen)
    write_codec(out, codec)
    return codec


def encode_texts(model: str, texts: str, codec: Path, kind: str, out: Path, workers: Workers = HERE) -> tuple[Codec, int]:
    """Texts as codes in one safetensors file beside the codec, row n being text n; the codec and how many there are.

    `workers` encode. Raises VectorError for another model's codec, for queries where it leaves them unquantized, and where
    `out` is something else than a codec.
    """
    check_free(out)
    found, _ = read_codec(codec)
    if found.asymmetric and kind == "query":
        raise VectorError(f"{codec} leaves queries unquantized: search with the model's own vectors of them")
    chosen = texts_in(texts, kind)
    encoder = open_encoder(model, workers)
    encoder.check(found)
    codes = found.coded_in_parts(encoder.vectors("texts", kind, chosen))
    write_codec(out, found, codes)
    return found, codes.shape[0]


def check_free(out: Path) -> None:
    """Raises VectorError where writing would replace something else than a codec, or the codec of a model or an artifact."""
    if out.name == CODEC and (is_trained(out.parent) or (out.parent / MANIFEST).is_file()):
        raise VectorError(f"{out} belongs to the model or the artifact there: name another --out")
    if out.exists() and not is_codec(out):
        raise VectorError(f"{out} exists and is no codec, so it is not replaced: name another --out")


def is_trained(folder: Path) -> bool:
    """Whether a folder is a model that was trained here, with its codec."""
    try:
        settings = json.loads((folder / TRAINING).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "trained" in settings and (folder / CODEC).is_file()
