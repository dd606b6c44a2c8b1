"""The order of the stages. Read this after `base/records.py`: it is the whole program on one page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from tierexport.artifact.folder import CODEC, ENTRANCE, IMATRIX, RECIPE, proven_files
from tierexport.artifact.manifest import MANIFEST, Manifest, read_manifest
from tierexport.artifact.verdicts import Conversion, Verification
from tierexport.base.errors import ArtifactError
from tierexport.base.files import check_room, write_whole
from tierexport.base.locks import locked
from tierexport.base.outputs import building
from tierexport.base.progress import note, stage
from tierexport.base.records import NO_IMATRIX, Imatrix
from tierexport.base.registry import FORMATS
from tierexport.base.stages import Stages
from tierexport.base.workers import HERE, Workers
from tierexport.formats import formats_of
from tierexport.formats.export import export, layers_done
from tierexport.formats.gguf.imatrix import portable_bytes
from tierexport.formats.job import Job
from tierexport.model.encoder import check_complete
from tierexport.model.languages import languages_of
from tierexport.model.reference import Reference
from tierexport.model.sketch import opened_or_sketched
from tierexport.model.source import open_source
from tierexport.model.weights import check_finite
from tierexport.recipe.gates import check_measured
from tierexport.recipe.overrides import slug_of
from tierexport.recipe.plan import Plan, make_plan
from tierexport.recipe.read import read_recipe
from tierexport.recipe.schema import Recipe, VerifySettings
from tierexport.recipe.sharing import share
from tierexport.report.comparison import Compared, compare
from tierexport.report.manifest import Outcome, describe
from tierexport.report.pictures import codecs_picture, compare_picture, frontier_picture, kind_of, map_picture
from tierexport.report.written import write_reports
from tierexport.search import codecs, find, frontier, mapping
from tierexport.search.found import Found, FoundCodec, Frontier
from tierexport.search.layer_map import ModelMap
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import output_codec
from tierexport.vectors.storage import read_codec, write_codec
from tierexport.verify import subject
from tierexport.verify.conversion import DESPITE, check_conversion, refuse_failed
from tierexport.verify.material import Material, read_material
from tierexport.verify.subject import Subject
from tierexport.verify.verifier import verify

DEVICES = ("cpu", "cuda")
"""Where artifacts are verified; a device that is not there is reported as not run."""


@dataclass(frozen=True)
class Build:
    """What a build left behind, for whoever prints it."""

    out: Path
    manifest: Manifest
    verification: Verification

    def as_json(self) -> dict[str, Any]:
        """As `build --json` prints it."""
        return {"out": str(self.out), "manifest": self.manifest.as_json(), **self.verification.as_json()}


def plan(recipe_path: Path, overrides: Sequence[str] = ()) -> Plan:
    """What a build of this recipe would make, of a model that is not here by its description alone.

    Raises InputError or MachineError.
    """
    recipe = read_recipe(recipe_path, overrides)
    with stage("Looking at the model"), opened_or_sketched(recipe.model, recipe.folder, recipe.base_model) as source:
        made = make_plan(recipe, source, formats_of(recipe))
    return _told(made)


def _plan_of_files(recipe: Recipe) -> Plan:
    """The plan of a model whose files are here, fetched if need be."""
    with stage("Looking at the model"):
        source = open_source(recipe.model, recipe.folder, recipe.base_model)
        made = make_plan(recipe, source, formats_of(recipe))
    return _told(made)


def _told(made: Plan) -> Plan:
    for remark in made.source.remarks:
        note(f"{made.source.name}: {remark}")
    return made


def build(recipe_path: Path, out: Path | None = None, overrides: Sequence[str] = (), despite: Sequence[str] = ()) -> Build:
    """Plan, check the conversion, calibrate, export and verify; `out` is replaced when all of it is done.

    Stages whose inputs have not changed are not run again, and a killed build goes on where it
    was. Raises InputError or MachineError, having left nothing behind; ConversionError where llama.cpp does not make of
    the converted model what it is, unless `despite` has "conversion". An artifact that fails its verification is kept,
    and its manifest says so.
    """
    made = _plan_of_files(read_recipe(recipe_path, overrides))
    out = out or Path("artifacts") / "-".join(filter(None, [made.source.name, made.recipe.name, slug_of(overrides)]))
    material = _inputs(made, out)
    with building(out) as work:
        _check_weights(made)
        conversion = _conversion(made, despite)
        codec = output_codec(made)
        jobs = _calibrated(made)
        imatrix = next((job.imatrix for job in jobs if job.imatrix.path), NO_IMATRIX)
        _write_inputs(work, made, imatrix, codec)
        artifacts = tuple(export(fmt, job, work) for fmt, job in zip(formats_of(made.recipe), jobs, strict=True))
        verification = _verified(subject.built(made, material, artifacts, codec), DEVICES)
        manifest = _written(work, Outcome(made, artifacts, imatrix, codec, conversion), verification)
    return Build(out, manifest, verification)


def _inputs(made: Plan, out: Path) -> Material:
    """What a build verifies on, all that it takes having been read before anything slow. Raises InputError, MachineError."""
    recipe = made.recipe
    with stage("Checking the inputs"):
        stored = bool(recipe.vectors) or (made.source.path / CODEC).is_file()
        check_measured(recipe.verify.gates, bool(recipe.verify.data), stored)
        made.check_texts()
        if recipe.calibration.imatrix:
            _calibrated(made)  # reads it, and measures nothing
        if recipe.vectors and recipe.vectors.codec:
            read_codec(Path(recipe.vectors.codec))
        check_room(out, sum(planned.bytes + planned.codes for planned in made))
        return read_material(recipe.verify, languages_of(made.source))


def _check_weights(made: Plan) -> None:
    with stage("Checking the weights"):
        check_finite(made.source)
        check_complete(made.source)


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


def _calibrated(made: Plan) -> list[Job]:
    """What each format's artifact is written from."""
    return [
        Job(planned, made, fmt.calibrated(planned, made)) for fmt, planned in zip(formats_of(made.recipe), made, strict=True)
    ]


def _write_inputs(work: Path, made: Plan, imatrix: Imatrix, codec: Codec | None) -> None:
    """Write imatrix and codec, and remove what an earlier build of another recipe left in the folder."""
    for name in (IMATRIX, CODEC, *ENTRANCE):
        (work / name).unlink(missing_ok=True)
    for name in set(FORMATS) - {fmt.format for fmt in made.formats}:
        Stages(work).drop(name)
        layers_done(work, name).clear()
    if imatrix.path:
        write_whole(work / IMATRIX, portable_bytes(imatrix.path))
    if codec:
        write_codec(work / CODEC, codec)


def _verified(what: Subject, devices: Sequence[str], workers: Workers = HERE) -> Verification:
    with stage("Verifying") as running:
        return verify(what, devices, running.say, workers)


def _written(work: Path, done: Outcome, verification: Verification) -> Manifest:
    """Write the recipe as others may have it, the manifest and the reports."""
    shared = share(done.made.recipe, done.made.source, done.imatrix.path is not None)
    write_whole(work / RECIPE, tomli_w.dumps(shared.document))
    manifest = describe(done, shared, work)
    return write_reports(work, manifest, verification, proven_files(work, manifest))


def verify_again(
    target: Path, model: str | None, settings: VerifySettings, devices: Sequence[str], codec: Path | None = None,
    workers: Workers = HERE,
) -> Verification:  # fmt: skip
    """Verify an artifact folder, or anybody's GGUF or torchao folder, against an fp32 model.

    Of a folder that `build` made, model, gates and codec are known, and retrieval sets and STS pairs unless `settings` has
    others; its reports are written anew. For what somebody else made `model` has to be named, and `codec` may be. `workers`
    encode. Raises InputError or MachineError.
    """
    if not (target / MANIFEST).is_file():
        return _verified(subject.anybodys(target, model, settings, codec), devices, workers)
    if codec:
        raise ArtifactError(f"{target} was built by a recipe: how its vectors are stored belongs there, under [vectors]")
    with locked(target, wait=False):
        manifest = read_manifest(target)
        before = proven_files(target, manifest)
        verification = _verified(subject.of_build(target, manifest, model, settings), devices, workers)
        if proven_files(target, manifest) != before:
            raise ArtifactError(f"{target} was changed while it was verified: verify it again")
        write_reports(target, manifest, verification, before)
    return verification


def compare_folders(folders: Sequence[Path], picture: Path) -> tuple[Compared, ...]:
    """What verified artifact folders are worth side by side, drawn to `picture`. Raises InputError."""
    kind = kind_of(picture)
    compared = compare(folders)
    write_whole(picture, compare_picture(compared, kind))
    return compared


def search(
    model: str, bits: float | None, size: int | None, out: Path | None, workers: Workers = HERE, max_time: float | None = None,
    fmt: str = "gguf",
) -> tuple[Found, Build]:  # fmt: skip
    """Find the best recipe under a budget (`search.find.search`), build and verify it. Raises InputError."""
    return _built(find.search(model, bits, size, out, workers, max_time, fmt))


def search_lossless(
    model: str, data: Sequence[str], loss: float, out: Path | None, workers: Workers = HERE, fmt: str = "gguf"
) -> tuple[Found, Build]:
    """Find the smallest recipe that retrieval on `data` shows to lose less than `loss` (`search.find`), build and verify it."""
    return _built(find.search_lossless(model, data, loss, out, workers, fmt), f"verify.data={json.dumps(list(data))}")


def _built(found: Found, *overrides: str) -> tuple[Found, Build]:
    """Build what was found; size and loss are those of the file."""
    done = build(found.recipe, overrides=overrides)
    (artifact,) = done.manifest.artifacts
    fidelity = next((each.fidelity for each in done.verification.verdicts if each.fidelity and not each.vectors), None)
    loss = 1 - fidelity.cos_mean if fidelity else None
    return replace(found, bytes=artifact.bytes, stored_bits=artifact.stored_bits, measured=loss), done


def map_model(model: str, picture: Path, workers: Workers = HERE) -> ModelMap:
    """A model's layers (`search.mapping.map_model`), drawn to `picture`. Raises InputError or MachineError."""
    kind = kind_of(picture)
    found = mapping.map_model(model, workers)
    write_whole(picture, map_picture(found, kind))
    return found


def search_codec(
    model: str, budget: int, data: Sequence[str], texts: str | None, asymmetric: bool, out: Path, picture: Path,
    workers: Workers = HERE,
) -> FoundCodec:  # fmt: skip
    """The best codec within so many bytes (`search.codecs`), the frontier drawn to `picture`. Raises InputError."""
    kind = kind_of(picture)
    found = codecs.search_codec(model, budget, data, texts, asymmetric, out, workers)
    write_whole(picture, codecs_picture(found, kind))
    return found


def draw_frontier(model: str, picture: Path, workers: Workers = HERE, fmt: str = "gguf") -> Frontier:
    """Bytes against loss (`search.frontier.frontier`), drawn to `picture`. Raises InputError or MachineError."""
    kind = kind_of(picture)
    found = frontier.frontier(model, workers, fmt)
    write_whole(picture, frontier_picture(found, kind))
    return found
