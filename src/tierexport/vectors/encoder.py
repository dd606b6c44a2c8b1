"""A model's fp32 vectors, and the codecs that suit them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tierexport.artifact.folder import CODEC
from tierexport.base.errors import VectorError
from tierexport.base.progress import stage
from tierexport.base.records import Floats, Source
from tierexport.base.workers import HERE, Workers
from tierexport.metrics.similarity import Similarity, normalized
from tierexport.model.reference import Reference
from tierexport.model.source import open_source
from tierexport.recipe.plan import Plan
from tierexport.recipe.schema import VectorSettings
from tierexport.vectors.codecs import COMPARED, Codec
from tierexport.vectors.scaling import fit, widening
from tierexport.vectors.storage import read_codec

PROBE = "By noon the fog had lifted from the harbour, and two of the three ferries were running again."
"""The sentence whose vector is a codec's fingerprint of its model."""

ALIKE = 0.9
"""The least cosine of two models' vectors of PROBE at which they share codecs: a model and its copy in half precision do."""


class Encoder:
    """A model's fp32 vectors, from the cache where they are there."""

    def __init__(self, source: Source, workers: Workers = HERE) -> None:
        """`workers`: what encodes."""
        self.source = source
        self.reference = Reference(source, workers=workers)
        self.similarity = Similarity.of(source)

    def compared(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """Vectors as they are compared, float32: of unit length unless the model's similarity counts lengths."""
        return self.similarity.prepared(np.asarray(self.vectors(what, kind, texts))).astype(np.float32)

    def unit(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """Unit vectors float32 (texts, dimensions) of texts of a kind, "query" or "passage"."""
        return normalized(np.asarray(self.vectors(what, kind, texts))).astype(np.float32)

    def vectors(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """The same as they come from the model, of any length, mapped from the cache."""
        with stage(f"Encoding {what}") as running:
            self.reference.say = running.say
            return self.reference.encode(what, kind, texts).vectors

    def fit(self, settings: VectorSettings, texts: Sequence[str]) -> Codec:
        """A codec whose bounds suit this model's vectors of texts, each prompted as a passage. Raises VectorError."""
        vectors = self.compared("texts to fit a codec on", "passage", texts)
        codec = fitted(vectors, settings, codec_similarity(self.similarity))
        if not (vectors != vectors[0]).any():
            raise VectorError(f"all {len(texts)} texts have the same vector, so there is no range to fit: fit on others")
        return self.marked(codec)

    def marked(self, codec: Codec) -> Codec:
        """A codec that knows this model again."""
        return replace(codec, probe=self._probe())

    def check(self, codec: Codec) -> None:
        """Refuse a codec that is not for this model's vectors. Raises VectorError."""
        own, name = self._probe(), self.source.name
        if codec.dimensions != len(own):
            raise VectorError(f"the codec is for {codec.dimensions} dimensions, and {name} has {len(own)}: fit another")
        if codec.probe is not None and not (cosine := float(codec.probe @ own)) >= ALIKE:
            raise VectorError(
                f"the codec is for another model than {name}: their vectors of one sentence have a cosine of {cosine:.2f}; "
                "fit another"
            )

    def _probe(self) -> Floats:
        """The unit vector of PROBE, float32 (dimensions,)."""
        found: Floats = self.unit("a sentence", "passage", [PROBE])[0]
        return found


def fitted(vectors: Floats, settings: VectorSettings, similarity: str) -> Codec:
    """A codec by a recipe's settings, its bounds from vectors, float32 (vectors, dimensions). Raises VectorError."""
    kept = settings.dimensions or vectors.shape[1]
    rotation = widening(kept, settings.widen, settings.rotate)
    codec = fit(vectors, settings.level, settings.scaling, settings.per_vector, rotation, similarity, kept)
    return replace(codec, asymmetric=settings.asymmetric)


def codec_similarity(similarity: Similarity) -> str:
    """The similarity of a codec for a model that compares vectors by `similarity`: on vectors of unit length, dot products and
    distances rank as cosines do. Raises VectorError for Manhattan distances, which take decoded vectors.
    """
    if similarity.name not in COMPARED:
        raise VectorError(
            f"the model compares vectors by {similarity.words}, and quantized ones can't be: {', '.join(COMPARED)}"
        )
    return similarity.name if similarity.lengths_count else "cosine"


def open_encoder(model: str, workers: Workers = HERE) -> Encoder:
    """The encoder of a model, named as on the command line. Raises SourceError."""
    with stage("Looking at the model"):
        return Encoder(open_source(str(Path(model).resolve()) if Path(model).is_dir() else model), workers)


def output_codec(made: Plan) -> Codec | None:
    """How a recipe wants vectors stored: by a codec fitted on the calibration texts, one in a file, or the model's own."""
    recipe, source = made.recipe, made.source
    settings, own = recipe.vectors, source.path / CODEC
    if settings is None and not own.is_file():
        return None
    encoder = Encoder(source)
    if settings and not settings.codec:
        return encoder.fit(settings, [text.text for text in made.texts.texts])
    codec, _ = read_codec(Path(settings.codec) if settings and settings.codec else own)
    encoder.check(codec)
    return codec
