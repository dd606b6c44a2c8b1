"""The order of the stages. Read this after `records.py`: it is the whole program on one page."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import UndefinedError

from tierexport.archive import tools
from tierexport.artifact import (
    CARD,
    CODEC,
    ENTRANCE,
    IMATRIX,
    MANIFEST,
    PAGE,
    RECIPE,
    VERIFICATION,
    artifacts_at,
    proven_files,
    read_manifest,
)
from tierexport.calibrate import measure_importance, texts_digest
from tierexport.card import POOLED, render_card
from tierexport.comparison import Compared, compare
from tierexport.datasets import calibration_texts
from tierexport.encode import check_complete, open_model
from tierexport.errors import ArtifactError, DataError
from tierexport.formats import formats_of, gguf, torchao
from tierexport.formats.gguf import converted, source_stages
from tierexport.formats.imatrix import check_fits, portable_bytes, read_imatrix, write_imatrix
from tierexport.formats.torchao import weight_bytes
from tierexport.model_folder import modules
from tierexport.plan import make_plan
from tierexport.progress import note, stage
from tierexport.recipe import read_recipe
from tierexport.records import Artifact, Floats, FormatPlan, Gate, Imatrix, Plan, Recipe, Source, Text, VerifySettings
from tierexport.report.page import render_page
from tierexport.report.pictures import compare_picture, kind_of
from tierexport.rounding.distill import STEPS, distill
from tierexport.rounding.layerwise import NOTHING_ROUNDED, TOKENS, TOKENS_TO_TUNE, Rounded, Target, round_layers
from tierexport.sharing import Shared, relocated, reopened, share
from tierexport.source import check_finite, open_source
from tierexport.vectoring import Encoder
from tierexport.vectors.codecs import Codec
from tierexport.vectors.storage import read_codec, write_codec
from tierexport.verdicts import Conversion, Verification
from tierexport.verify import Judged, Material, Reference, read_material, verify
from tierexport.verify.conversion import DESPITE, check_conversion, refuse_failed
from tierexport.workdir import Stages, building, expanded, file_digest, locked, stage_key, write_json, write_whole

DEVICES = ("cpu", "cuda")
"""Where artifacts are verified; a device that is not there is reported as not run."""

BLIND_TO_IMPORTANCE = ("F32", "F16", "Q8_0")
"""Types that come out the same with importance and without."""


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
        imatrix = importance(made)
        _drop_leftovers(work, made)
        if imatrix.path:
            write_whole(work / IMATRIX, portable_bytes(imatrix.path))
        if codec:
            write_codec(work / CODEC, codec)
        artifacts = tuple(export(fmt, made, imatrix, work) for fmt in made.formats)
        for artifact in artifacts:
            if artifact.format == "torchao":
                torchao.write_entrance(artifact.path)
        judged = [Judged(artifact.format, artifact.path) for artifact in artifacts]
        verification = _verify(judged, source, material, recipe.verify.gates, DEVICES, codec)
        shared = share(recipe, source, imatrix.path is not None)
        write_whole(work / RECIPE, tomli_w.dumps(shared.document))
        manifest = describe(made, artifacts, imatrix, codec, conversion, shared, work)
        manifest = _write_verification(work, manifest, verification, proven_files(work, manifest))
    return Build(out, manifest, verification)


def _conversion(made: Plan, despite: Sequence[str]) -> Conversion | None:
    """What llama.cpp makes of the unquantized GGUF, where one is built. Raises ConversionError for what is wrong."""
    if not any(fmt.format == "gguf" for fmt in made.formats):
        return None
    with stage("Checking the conversion") as running:
        found = check_conversion(made.source, Reference(made.source, running.say))
    if DESPITE not in despite:
        refuse_failed(made.source, found)
    return found


def _drop_leftovers(work: Path, made: Plan) -> None:
    """Remove what an earlier build of another recipe left in the folder that this one starts from."""
    for name in (IMATRIX, CODEC, *ENTRANCE):
        (work / name).unlink(missing_ok=True)
    for name in set(_EXPORT) - {fmt.format for fmt in made.formats}:
        Stages(work).drop(name)
        Stages(work / f".rounding-{name}").clear()


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
        return encoder.fit(settings, [text.text for text in _texts(recipe)])
    codec, _ = read_codec(recipe.folder / expanded(settings.codec) if settings and settings.codec else own)
    encoder.check(codec)
    return codec


def importance(made: Plan) -> Imatrix:
    """The imatrix a plan needs: the one its recipe names, or one measured now (or before)."""
    planned = next((fmt for fmt in made.formats if fmt.format == "gguf"), None)
    settings = made.recipe.calibration
    if planned is None or all(row.type in BLIND_TO_IMPORTANCE for row in planned.rows):
        return Imatrix({}, "", 0)
    if settings.imatrix:
        imatrix = read_imatrix(made.recipe.folder / expanded(settings.imatrix))
    else:
        imatrix = read_imatrix(_measured_imatrix(made, planned))
    check_fits(imatrix, [row.tensor for row in planned.rows])
    return imatrix


def _measured_imatrix(made: Plan, planned: FormatPlan) -> Path:
    settings = made.recipe.calibration
    texts = _texts(made.recipe)
    dataset = texts_digest(texts, settings.texts)

    def measure(folder: Path) -> None:
        running.total(len(texts))
        found = measure_importance(open_model(made.source), texts, dataset, running.step)
        write_imatrix(found, [row.tensor for row in planned.rows], folder / "imatrix.gguf")

    with stage("Calibrating") as running:
        folder = source_stages(made.source).run(f"imatrix-{dataset}", stage_key(dataset, tools()), measure)
    return folder / "imatrix.gguf"


def _export_gguf(plan: FormatPlan, recipe: Recipe, source: Source, imatrix: Imatrix, stages: Stages) -> Artifact:
    name = f"{source.name}-{recipe.name}.gguf"
    with stage("Converting"):
        converted(source)

    def write(folder: Path) -> dict[str, Any]:
        rounded = NOTHING_ROUNDED
        if _feeds_back(plan):
            parts = gguf.targets(plan, source, imatrix), functools.partial(gguf.tunable, plan, source)
            rounded = _round(recipe, source, _layers(stages, plan), key, *parts)
        with stage("Writing the GGUF") as running:
            running.total(plan.parameters)
            gguf.write_gguf(plan, recipe, source, imatrix, rounded, folder / name, running.step)
        return _outcome(rounded, plan)

    key = _key(plan, recipe, source, imatrix.path and file_digest(imatrix.path))
    folder = stages.run("gguf", key, write)
    _layers(stages, plan).clear()
    return Artifact("gguf", folder / name, (folder / name).stat().st_size, plan.carried_out(**stages.notes("gguf")))


def _export_torchao(plan: FormatPlan, recipe: Recipe, source: Source, _: Imatrix, stages: Stages) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        rounded = NOTHING_ROUNDED
        if _feeds_back(plan):
            targets = torchao.targets(plan, recipe.torchao, source)
            rounded = _round(recipe, source, _layers(stages, plan), key, targets, torchao.tunable)
        with stage("Writing the torchao folder") as running:
            running.total(plan.parameters)
            torchao.write_torchao(plan, recipe.torchao, source, rounded, folder, running.step)
        return _outcome(rounded, plan)

    key = _key(plan, recipe, source, asdict(recipe.torchao))
    folder = stages.run("torchao", key, write)
    _layers(stages, plan).clear()
    return Artifact("torchao", folder, weight_bytes(folder), plan.carried_out(**stages.notes("torchao")))


def _texts(recipe: Recipe) -> list[Text]:
    return calibration_texts(recipe.calibration.texts, recipe.calibration.count, recipe.folder)


def _feeds_back(plan: FormatPlan) -> bool:
    """Whether anything of a plan is rounded with error feedback."""
    return any(row.rounding != "nearest" for row in plan.rows)


def _round(
    recipe: Recipe, source: Source, done: Stages, key: str, targets: list[Target],
    tunable: Callable[[Mapping[str, Floats]], list[str]],
) -> Rounded:  # fmt: skip
    """What error feedback makes of a plan's matrices, and tuning of that where the recipe asks for it."""
    texts, tuned = _texts(recipe), recipe.rounding == "distill"
    model = open_model(source)
    parameters = {
        name: each.detach().numpy().copy() for name, each in model.transformers_model.named_parameters() if each.dim() == 1
    }
    with stage("Rounding layer by layer") as running:
        running.total(sum(each.tensor.parameters for each in targets if each.tensor.layer is not None))
        tokens = TOKENS_TO_TUNE if tuned else TOKENS
        rounded = round_layers(model, texts, targets, done, key, tokens, running.step)
    if not tuned:
        return rounded
    with stage("Tuning") as running:
        running.total(STEPS)
        return distill(model, open_model(source), texts, rounded, tunable(parameters), done, key, running.step)


def _layers(stages: Stages, plan: FormatPlan) -> Stages:
    """Where the layers that are done are kept until the artifact is."""
    return Stages(stages.root / f".rounding-{plan.format}")


def _outcome(rounded: Rounded, plan: FormatPlan) -> dict[str, Any]:
    """What `FormatPlan.carried_out` has to know."""
    asked = [row.tensor.name for row in plan.rows if row.rounding != "nearest"]
    return {"nearest": [name for name in asked if name not in rounded.codes], "tuned": bool(rounded.kept)}


def _told(codec: Codec) -> dict[str, Any]:
    """What a manifest says of a codec."""
    return {"path": CODEC, "stored": codec.name, **codec.as_json()}


_EXPORT = {"gguf": _export_gguf, "torchao": _export_torchao}


def export(fmt: FormatPlan, made: Plan, imatrix: Imatrix, folder: Path) -> Artifact:
    """Write one format of a plan into a folder, unless what is there was made from the same."""
    return _EXPORT[fmt.format](fmt, made.recipe, made.source, imatrix, Stages(folder))


def _key(plan: FormatPlan, recipe: Recipe, source: Source, extra: Any) -> str:
    rows = [[row.tensor.name, row.type, row.rounding] for row in plan.rows]
    read = texts_digest(_texts(recipe), recipe.calibration.texts) if _feeds_back(plan) else ""
    return stage_key(asdict(source) | {"path": ""}, recipe.name, recipe.rounding, rows, read, extra, tools())


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
            "rounding_texts": texts_digest(_texts(recipe), recipe.calibration.texts) if any(map(_feeds_back, made)) else None,
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
