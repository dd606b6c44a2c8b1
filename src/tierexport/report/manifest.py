"""What a build made, as a manifest: what was made of what, tensor by tensor, with the bytes that are on the disk."""

from dataclasses import asdict, dataclass
from pathlib import Path

from tierexport.artifact.manifest import (
    VERSION,
    ArtifactEntry,
    CalibrationEntry,
    ConversionEntry,
    Manifest,
    ModelEntry,
    RecipeEntry,
    TensorEntry,
)
from tierexport.artifact.verdicts import Conversion
from tierexport.base.archive import tools
from tierexport.base.records import Imatrix, Source
from tierexport.model.folder import module_kind, modules
from tierexport.model.weights import fp32_bytes
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import Artifact, PlannedTensor
from tierexport.recipe.sharing import Shared
from tierexport.report.card import POOLED
from tierexport.vectors.codecs import Codec
from tierexport.vectors.storage import codec_entry


@dataclass(frozen=True)
class Outcome:
    """What the stages of a build came to."""

    made: Plan
    artifacts: tuple[Artifact, ...]
    imatrix: Imatrix
    codec: Codec | None
    conversion: Conversion | None


def describe(done: Outcome, shared: Shared, folder: Path) -> Manifest:
    """The manifest of the artifacts in `folder`, before they are verified."""
    return Manifest(
        version=VERSION,
        model=_model(done.made.source),
        recipe=_recipe(done.made, done.imatrix),
        conversion=_conversion(done.conversion) if done.conversion else None,
        texts=shared.texts,
        vectors=codec_entry(done.codec) if done.codec else None,
        tools=tools(),
        artifacts=tuple(_artifact(artifact, folder) for artifact in done.artifacts),
    )


def _model(source: Source) -> ModelEntry:
    return ModelEntry(
        spec=source.shared_spec,
        name=source.name,
        base_model=source.base_model,
        revision=source.revision,
        digest=source.digest,
        licence=source.licence,
        licences=source.terms.identifiers,
        licence_name=source.terms.name,
        licence_link=source.terms.link,
        pooling=source.pooling,
        max_tokens=source.max_tokens,
        prompts=dict(source.prompts),
        languages=source.languages,
        similarity=source.similarity,
        note=source.note,
        modules=tuple(map(module_kind, modules(source.path))) or POOLED,
        fp32_bytes=fp32_bytes(source.path),
    )


def _recipe(made: Plan, imatrix: Imatrix) -> RecipeEntry:
    return RecipeEntry(
        name=made.recipe.name,
        description=made.recipe.description,
        rounding=made.recipe.rounding,
        torchao=asdict(made.recipe.torchao),
        calibration=CalibrationEntry(imatrix.dataset, imatrix.chunks) if imatrix.path else None,
        rounding_texts=made.texts.digest if any(planned.feeds_back for planned in made) else None,
    )


def _conversion(found: Conversion) -> ConversionEntry:
    """What held in numbers, what did not in full."""
    return ConversionEntry(found.passed, len(found.probes), found.least, found.cos_min, found.failed, found.limits)


def _artifact(artifact: Artifact, folder: Path) -> ArtifactEntry:
    """An artifact's plan as it was carried out, and the bytes of its files."""
    plan = artifact.plan
    return ArtifactEntry(
        format=plan.format,
        parameters=plan.parameters,
        tensor_bytes=plan.bytes,
        nominal_bits=plan.nominal_bits,
        tensor_bits=plan.tensor_bits,
        tensors=tuple(map(_tensor, plan.rows)),
        path=artifact.path.relative_to(folder).as_posix(),
        bytes=artifact.bytes,
        stored_bits=artifact.stored_bits,
    )


def _tensor(row: PlannedTensor) -> TensorEntry:
    tensor = row.tensor
    return TensorEntry(
        tensor.name, tensor.role, tensor.layer, tensor.shape, row.tier.name, row.type, row.bytes, row.rounding, row.note
    )
