"""What is verified against what: artifacts, the fp32 model, texts, gates, and the codec that vectors may be stored by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tierexport.artifact.folder import CODEC, RECIPE
from tierexport.artifact.manifest import Manifest, TextsEntry
from tierexport.base.errors import ArtifactError, DataError
from tierexport.base.records import Source
from tierexport.formats.artifacts import artifacts_at
from tierexport.model.languages import languages_of
from tierexport.model.source import open_source
from tierexport.recipe.gates import Gate
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import Artifact
from tierexport.recipe.read import read_recipe
from tierexport.recipe.schema import VerifySettings
from tierexport.recipe.sharing import relocated, reopened
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import Encoder
from tierexport.vectors.storage import codec_entry, read_codec
from tierexport.verify.material import Material, read_material
from tierexport.verify.opened import Judged


@dataclass(frozen=True)
class Subject:
    """Artifacts of one model, what they are judged on, and the gates they have to pass."""

    artifacts: tuple[Judged, ...]
    source: Source
    material: Material
    gates: tuple[Gate, ...] = ()
    codec: Codec | None = None


def built(made: Plan, material: Material, artifacts: Sequence[Artifact], codec: Codec | None) -> Subject:
    """What a build verifies."""
    judged = tuple(Judged(artifact.format, artifact.path) for artifact in artifacts)
    return Subject(judged, made.source, material, made.recipe.verify.gates, codec)


def anybodys(target: Path, model: str | None, settings: VerifySettings, codec: Path | None) -> Subject:
    """What somebody else made, beside the fp32 model that is named. Raises InputError or MachineError."""
    if model is None:
        raise ArtifactError(f"{target} was not made by tierexport build: name its fp32 model with --model")
    source, stored = open_source(model), read_codec(codec)[0] if codec else None
    return _checked(Subject(_artifacts(target), source, read_material(settings, languages_of(source)), (), stored))


def of_build(target: Path, manifest: Manifest, model: str | None, settings: VerifySettings) -> Subject:
    """What `build` left in a folder, with the recipe's own gates, and its texts unless `settings` names others.

    Raises ArtifactError where model or codec are not those that it was built with, DataError where its texts can't be had.
    """
    codec = _codec_of(target, manifest)
    source = open_source(model) if model else reopened(manifest.model, target.parent)
    if source.digest != manifest.model.digest:
        raise ArtifactError(f"{target} was made from another model than {source.spec}: their digests differ")
    known = read_recipe(target / RECIPE).verify
    others = settings.data or settings.sts
    speaks = languages_of(source)
    material = read_material(settings, speaks) if others else _its_material(known, manifest.texts, target, speaks)
    return _checked(Subject(_artifacts(target), source, material, known.gates, codec))


def _codec_of(target: Path, manifest: Manifest) -> Codec | None:
    if manifest.vectors is None:
        return None
    codec, _ = read_codec(target / CODEC)
    if codec_entry(codec) != manifest.vectors:
        raise ArtifactError(f"{target / CODEC} is another codec than the one that {target} was built with: build it again")
    return codec


def _its_material(settings: VerifySettings, texts: Sequence[TextsEntry], folder: Path, languages: Sequence[str]) -> Material:
    """What the recipe in a folder verifies on."""
    try:
        return read_material(relocated(settings, texts), languages)
    except DataError as error:
        raise DataError(f"{error}; the recipe in {folder} names it, and --data or --sts name others in its place") from error


def _artifacts(target: Path) -> tuple[Judged, ...]:
    return tuple(Judged(*each) for each in artifacts_at(target))


def _checked(subject: Subject) -> Subject:
    """The same, its codec being for vectors of this model. Raises VectorError."""
    if subject.codec:
        Encoder(subject.source).check(subject.codec)
    return subject
