"""The order of the stages. Read this after `records.py`: it is the whole program on one page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import UndefinedError

from tierexport.artifact.folder import (
    CARD,
    CODEC,
    ENTRANCE,
    IMATRIX,
    MANIFEST,
    PAGE,
    RECIPE,
    VERIFICATION,
    proven_files,
    read_manifest,
)
from tierexport.artifact.verdicts import Conversion, Verification
from tierexport.base.archive import tools
from tierexport.base.errors import ArtifactError, DataError
from tierexport.base.files import write_json, write_whole
from tierexport.base.locks import locked
from tierexport.base.outputs import building
from tierexport.base.paths import expanded
from tierexport.base.progress import note, stage
from tierexport.base.records import NO_IMATRIX, Artifact, Gate, Imatrix, Source, VerifySettings
from tierexport.base.registry import FORMATS
from tierexport.base.stages import Stages
from tierexport.formats import formats_of
from tierexport.formats.artifacts import artifacts_at
from tierexport.formats.export import export, layers_done
from tierexport.formats.gguf.imatrix import portable_bytes
from tierexport.formats.job import Job
from tierexport.model.encoder import check_complete
from tierexport.model.folder import modules
from tierexport.model.reference import Reference
from tierexport.model.source import open_source
from tierexport.model.weights import check_finite
from tierexport.recipe.plan import Plan, make_plan
from tierexport.recipe.schema import read_recipe
from tierexport.recipe.sharing import Shared, relocated, reopened, share
from tierexport.report.card import POOLED, render_card
from tierexport.report.comparison import Compared, compare
from tierexport.report.page import render_page
from tierexport.report.pictures import compare_picture, frontier_picture, kind_of, map_picture
from tierexport.search import find, mapping
from tierexport.search.found import Found, Frontier
from tierexport.search.frontier import frontier
from tierexport.search.layer_map import ModelMap
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import Encoder
from tierexport.vectors.storage import read_codec, write_codec
from tierexport.verify.conversion import DESPITE, check_conversion, refuse_failed
from tierexport.verify.opened import Judged
from tierexport.verify.verifier import Material, read_material, verify

DEVICES = ("cpu", "cuda")
"""Where artifacts are verified; a device that is not there is reported as not run."""


@dataclass(frozen=True)
class Build:
    """What a build left behind, for whoever prints it."""

    out: Path
    manifest: dict[str, Any]
    verification: Verification


def plan(recipe_path: Path, overrides: Sequence[str] = ()) -> Plan:
    """What a build of this recipe would make. Raises InputError or MachineError."""
    recipe = read_recipe(recipe_path, overrides)
    with stage("Looking at the model"):
        source = open_source(recipe.model, recipe.folder, recipe.base_model)
        made = make_plan(recipe, source, formats_of(recipe))
    for remark in source.remarks:
        note(f"{source.name}: {remark}")
    return made


def build(recipe_path: Path, out: Path | None = None, overrides: Sequence[str] = (), despite: Sequence[str] = ()) -> Build:
    """Plan, check the conversion, calibrate, export and verify; `out` is replaced when all of it is done.

    Stages whose inputs have not changed are not run again, and a killed build goes on where it
    was. Raises InputError or MachineError, having left nothing behind; ConversionError where llama.cpp does not make of
    the converted model what it is, unless `despite` has "conversion". An artifact that fails its verification is kept,
    and its manifest says so.
    """
    made = plan(recipe_path, overrides)
    recipe, source = made.recipe, made.source
    material = read_material(recipe.verify, recipe.folder)
    out = out or Path("artifacts") / f"{source.name}-{recipe.name}"
    with building(out) as work:
        with stage("Checking the weights"):
            check_finite(source)
            check_complete(source)
        conversion = _conversion(made, despite)
        codec = output_codec(made)
        formats = formats_of(recipe)
        jobs = [Job(planned, made, fmt.calibrated(planned, made)) for fmt, planned in zip(formats, made, strict=True)]
        imatrix = next((job.imatrix for job in jobs if job.imatrix.path), NO_IMATRIX)
        _drop_leftovers(work, made)
        if imatrix.path:
            write_whole(work / IMATRIX, portable_bytes(imatrix.path))
        if codec:
            write_codec(work / CODEC, codec)
        artifacts = tuple(export(fmt, job, work) for fmt, job in zip(formats, jobs, strict=True))
        judged = [Judged(artifact.format, artifact.path) for artifact in artifacts]
        verification = _verify(judged, source, material, recipe.verify.gates, DEVICES, codec)
        shared = share(recipe, source, imatrix.path is not None)
        write_whole(work / RECIPE, tomli_w.dumps(shared.document))
        manifest = describe(made, artifacts, imatrix, codec, conversion, shared, work)
        manifest = _write_verification(work, manifest, verification, proven_files(work, manifest))
    return Build(out, manifest, verification)


def _conversion(made: Plan, despite: Sequence[str]) -> Conversion | None:
    """What a foreign converter's unquantized artifact is worth, where one is built. Raises ConversionError."""
    for fmt in formats_of(made.recipe):
        if fmt.converted_by_others and (file := fmt.unquantized(made.source)):
            with stage("Checking the conversion") as running:
                found = check_conversion(fmt, file, Reference(made.source, running.say))
            if DESPITE not in despite:
                refuse_failed(made.source, found)
            return found
    return None


def _drop_leftovers(work: Path, made: Plan) -> None:
    """Remove what an earlier build of another recipe left in the folder that this one starts from."""
    for name in (IMATRIX, CODEC, *ENTRANCE):
        (work / name).unlink(missing_ok=True)
    for name in set(FORMATS) - {fmt.format for fmt in made.formats}:
        Stages(work).drop(name)
        layers_done(work, name).clear()


def verify_again(
    target: Path, model: str | None, settings: VerifySettings, devices: Sequence[str], codec: Path | None = None
) -> Verification:
    """Verify an artifact folder, or anybody's GGUF or torchao folder, against an fp32 model.

    Of a folder that `build` made, model, gates and codec are known, and retrieval sets and STS pairs unless `settings` has
    others; its reports are written anew. For what somebody else made `model` has to be named, and `codec` may be.
    Raises InputError or MachineError.
    """
    if not (target / MANIFEST).is_file():
        if model is None:
            raise ArtifactError(f"{target} was not made by tierexport build: name its fp32 model with --model")
        source, stored = open_source(model), read_codec(codec)[0] if codec else None
        return _verified(target, source, read_material(settings, Path()), (), devices, stored)
    with locked(target, wait=False):
        return _verified_anew(target, model, settings, devices, codec)


def _verified_anew(
    target: Path, model: str | None, settings: VerifySettings, devices: Sequence[str], codec: Path | None
) -> Verification:
    """The same for a folder that `build` made, which nobody may change meanwhile."""
    manifest = read_manifest(target)
    before = proven_files(target, manifest)
    if codec:
        raise ArtifactError(f"{target} was built by a recipe: how its vectors are stored belongs there, under [vectors]")
    stored = read_codec(target / CODEC)[0] if manifest.get("vectors") else None
    if stored and _told(stored) != {"similarity": "cosine", **manifest["vectors"]}:
        raise ArtifactError(f"{target / CODEC} is another codec than the one that {target} was built with: build it again")
    source = open_source(model) if model else reopened(manifest["model"], target.parent)
    if source.digest != manifest["model"]["digest"]:
        raise ArtifactError(f"{target} was made from another model than {source.spec}: their digests differ")
    known = read_recipe(target / RECIPE).verify
    others = settings.data or settings.sts
    material = read_material(settings, Path()) if others else _its_material(known, manifest.get("texts") or (), target)
    verification = _verified(target, source, material, known.gates, devices, stored)
    if proven_files(target, manifest) != before:
        raise ArtifactError(f"{target} was changed while it was verified: verify it again")
    try:
        _write_verification(target, manifest, verification, before)
    except (KeyError, TypeError, UndefinedError) as error:  # nothing is written before everything is rendered
        raise ArtifactError(f"{target / MANIFEST} is not what this tierexport writes ({error!r}): build it again") from error
    return verification


def _its_material(settings: VerifySettings, texts: Sequence[Mapping[str, str]], folder: Path) -> Material:
    """What the recipe in a folder verifies on."""
    try:
        return read_material(relocated(settings, texts), folder)
    except DataError as error:
        raise DataError(f"{error}; the recipe in {folder} names it, and --data or --sts name others in its place") from error


def _verified(
    target: Path, source: Source, material: Material, gates: Sequence[Gate], devices: Sequence[str], codec: Codec | None
) -> Verification:
    """What the artifacts at a path are worth beside their fp32 model."""
    judged = [Judged(*each) for each in artifacts_at(target)]
    if codec:
        Encoder(source).check(codec)
    return _verify(judged, source, material, gates, devices, codec)


def compare_folders(folders: Sequence[Path], picture: Path) -> tuple[Compared, ...]:
    """What verified artifact folders are worth side by side, drawn to `picture`. Raises InputError."""
    kind = kind_of(picture)
    compared = compare(folders)
    write_whole(picture, compare_picture(compared, kind))
    return compared


def _verify(
    judged: Sequence[Judged], source: Source, material: Material, gates: Sequence[Gate], devices: Sequence[str],
    codec: Codec | None,
) -> Verification:  # fmt: skip
    with stage("Verifying") as running:
        return verify(judged, source, material, gates, devices, codec, running.say)


def _write_verification(
    folder: Path, manifest: dict[str, Any], verification: Verification, files: Mapping[str, str]
) -> dict[str, Any]:
    """Write what was found out of these files, by their digests; the manifest, which is returned, comes last and names them."""
    proven = {**manifest, "verified": verification.passed, "files": dict(files)}
    card = render_card(proven, verification, (folder / RECIPE).read_text("utf-8"))
    page = render_page(proven, verification)
    write_json(folder / VERIFICATION, verification.as_json())
    write_whole(folder / CARD, card)
    write_whole(folder / PAGE, page)
    write_json(folder / MANIFEST, proven)
    return proven


def output_codec(made: Plan) -> Codec | None:
    """How a recipe wants vectors stored: by a codec fitted on the calibration texts, one in a file, or the model's own."""
    recipe, source = made.recipe, made.source
    settings, own = recipe.vectors, source.path / CODEC
    if settings is None and not own.is_file():
        return None
    encoder = Encoder(source)
    if settings and not settings.codec:
        return encoder.fit(settings, [text.text for text in made.texts.texts])
    codec, _ = read_codec(recipe.folder / expanded(settings.codec) if settings and settings.codec else own)
    encoder.check(codec)
    return codec


def _told(codec: Codec) -> dict[str, Any]:
    """What a manifest says of a codec."""
    return {"path": CODEC, "stored": codec.name, **codec.as_json()}


def describe(
    made: Plan,
    artifacts: Sequence[Artifact],
    imatrix: Imatrix,
    codec: Codec | None,
    conversion: Conversion | None,
    shared: Shared,
    folder: Path,
) -> dict[str, Any]:
    """The manifest: what was made of what, tensor by tensor, with the bytes that are on the disk."""
    source, recipe = made.source, made.recipe
    return {
        "model": {
            "spec": source.shared_spec,
            "name": source.name,
            "base_model": source.base_model,
            "revision": source.revision,
            "digest": source.digest,
            "licence": source.licence,
            "licences": list(source.terms.identifiers),
            "licence_name": source.terms.name,
            "licence_link": source.terms.link,
            "pooling": source.pooling,
            "max_tokens": source.max_tokens,
            "prompts": dict(source.prompts),
            "languages": list(source.languages),
            "similarity": source.similarity,
            "note": source.note,
            "modules": [module["type"].rpartition(".")[2] for module in modules(source.path)] or list(POOLED),
        },
        "recipe": {
            "name": recipe.name,
            "description": recipe.description,
            "rounding": recipe.rounding,
            "torchao": asdict(recipe.torchao),
            "calibration": {"dataset": imatrix.dataset, "texts": imatrix.chunks} if imatrix.path else None,
            "rounding_texts": made.texts.digest if any(planned.feeds_back for planned in made) else None,
        },
        "conversion": conversion and conversion.as_json(),
        "texts": list(shared.texts),
        "vectors": codec and _told(codec),
        "tools": tools(),
        "artifacts": [_describe_artifact(artifact, folder) for artifact in artifacts],
    }


def _describe_artifact(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """The artifact's plan, with the bytes of the files in place of those of the tensors alone."""
    return {
        **artifact.plan.as_json(),
        "path": artifact.path.relative_to(folder).as_posix(),
        "bytes": artifact.bytes,
        "stored_bits": artifact.stored_bits,
    }


def search(model: str, bits: float | None, size: int | None, out: Path | None) -> tuple[Found, Build]:
    """Find the best recipe under a budget (`search.find.search`), build and verify it. Raises InputError."""
    return _built(find.search(model, bits, size, out))


def search_lossless(model: str, data: str | None, out: Path | None) -> tuple[Found, Build]:
    """Find the smallest recipe that retrieval on `data`, or the built-in set, can't tell from fp32, build and verify it."""
    name = data or "builtin"
    return _built(find.search_lossless(model, name, out), f"verify.data={json.dumps([name])}")


def map_model(model: str, picture: Path) -> ModelMap:
    """A model's layers (`search.mapping.map_model`), drawn to `picture`. Raises InputError or MachineError."""
    kind = kind_of(picture)
    found = mapping.map_model(model)
    write_whole(picture, map_picture(found, kind))
    return found


def draw_frontier(model: str, picture: Path) -> Frontier:
    """Bytes against loss (`search.frontier.frontier`), drawn to `picture`. Raises InputError or MachineError."""
    kind = kind_of(picture)
    found = frontier(model)
    write_whole(picture, frontier_picture(found, kind))
    return found


def _built(found: Found, *overrides: str) -> tuple[Found, Build]:
    """Build what was found; the size is that of the file."""
    built = build(found.recipe, overrides=overrides)
    (artifact,) = built.manifest["artifacts"]
    return replace(found, bytes=artifact["bytes"], stored_bits=artifact["stored_bits"]), built
