"""The order of the stages. Read this after `records.py`: it is the whole program on one page."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from tierexport import __version__, archive
from tierexport.calibrate import measure_importance, texts_digest
from tierexport.card import render_card
from tierexport.datasets import calibration_texts
from tierexport.encode import open_model
from tierexport.formats import formats_of
from tierexport.formats.gguf import converted, source_stages, write_gguf
from tierexport.formats.imatrix import check_fits, read_imatrix, write_imatrix
from tierexport.formats.torchao import weight_bytes, write_torchao
from tierexport.plan import make_plan
from tierexport.progress import stage
from tierexport.recipe import read_recipe
from tierexport.records import Artifact, FormatPlan, Imatrix, Plan, Recipe, Source, Verdict
from tierexport.source import check_finite, open_source
from tierexport.verify import screen_artifacts
from tierexport.workdir import Stages, building, file_digest, stage_key, write_json, write_whole

NEEDS_IMPORTANCE_BELOW = 8
"""Bits from which on ggml ignores importance: Q8_0 and the float types are the same without."""


@dataclass(frozen=True)
class Build:
    """What a build left behind, for whoever prints it."""

    out: Path
    manifest: dict[str, Any]
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.status == "ok" for verdict in self.verdicts)


def plan(recipe_path: Path, overrides: Sequence[str] = ()) -> Plan:
    """What a build of this recipe would make. Raises InputError or MachineError."""
    recipe = read_recipe(recipe_path, overrides)
    with stage("Looking at the model"):
        return make_plan(recipe, open_source(recipe.model, recipe.folder), formats_of(recipe))


def build(recipe_path: Path, out: Path | None = None, overrides: Sequence[str] = ()) -> Build:
    """Plan, calibrate, export and check; `out` is replaced when all of it is done.

    Stages whose inputs have not changed are not run again, and a killed build goes on where it
    was. Raises InputError or MachineError, having left nothing behind.
    """
    made = plan(recipe_path, overrides)
    recipe, source = made.recipe, made.source
    out = out or Path("artifacts") / f"{source.name}-{recipe.name}"
    with building(out) as work:
        with stage("Checking the weights"):
            check_finite(source)
        imatrix = importance(made)
        if imatrix.path:
            shutil.copyfile(imatrix.path, work / "imatrix.gguf")
        artifacts = tuple(_EXPORT[fmt.format](fmt, recipe, source, imatrix, Stages(work)) for fmt in made.formats)
        with stage("Checking against fp32") as running:
            running.total(len(artifacts) + 1)
            verdicts = screen_artifacts(artifacts, source, running.step)
        manifest = describe(made, artifacts, imatrix, work)
        write_whole(work / "recipe.toml", tomli_w.dumps(recipe.document))
        write_json(work / "verify.json", {"reference": "fp32, 143 sentences", "results": [asdict(each) for each in verdicts]})
        write_whole(work / "README.md", render_card(manifest, [asdict(each) for each in verdicts]))
        write_json(work / "manifest.json", manifest)
    return Build(out, manifest, verdicts)


def importance(made: Plan) -> Imatrix:
    """The imatrix a plan needs: the one its recipe names, or one measured now (or before)."""
    gguf = next((fmt for fmt in made.formats if fmt.format == "gguf"), None)
    settings = made.recipe.calibration
    if gguf is None or all(row.tier.bits >= NEEDS_IMPORTANCE_BELOW for row in gguf.rows):
        return Imatrix({}, "", 0)
    if settings.imatrix:
        imatrix = read_imatrix(made.recipe.folder / Path(settings.imatrix).expanduser())
    else:
        imatrix = read_imatrix(_measured_imatrix(made, gguf))
    check_fits(imatrix, [row.tensor for row in gguf.rows])
    return imatrix


def _measured_imatrix(made: Plan, gguf: FormatPlan) -> Path:
    settings = made.recipe.calibration
    texts = calibration_texts(settings.texts, settings.count, made.recipe.folder)
    dataset = texts_digest(texts, settings.texts)

    def measure(folder: Path) -> None:
        running.total(len(texts))
        found = measure_importance(open_model(made.source), texts, dataset, running.step)
        write_imatrix(found, [row.tensor for row in gguf.rows], folder / "imatrix.gguf")

    with stage("Calibrating") as running:
        folder = source_stages(made.source).run(f"imatrix-{dataset}", stage_key(dataset, tools()), measure)
    return folder / "imatrix.gguf"


def _export_gguf(plan: FormatPlan, recipe: Recipe, source: Source, imatrix: Imatrix, stages: Stages) -> Artifact:
    name = f"{source.name}-{recipe.name}.gguf"
    with stage("Converting"):
        converted(source)

    def write(folder: Path) -> None:
        running.total(plan.parameters)
        write_gguf(plan, recipe, source, imatrix, folder / name, running.step)

    with stage("Writing the GGUF") as running:
        folder = stages.run("gguf", _key(plan, recipe, source, imatrix.path and file_digest(imatrix.path)), write)
    return Artifact("gguf", folder / name, (folder / name).stat().st_size, plan)


def _export_torchao(plan: FormatPlan, recipe: Recipe, source: Source, _: Imatrix, stages: Stages) -> Artifact:
    def write(folder: Path) -> None:
        running.total(plan.parameters)
        write_torchao(plan, recipe.torchao, source, folder, running.step)

    with stage("Writing the torchao folder") as running:
        folder = stages.run("torchao", _key(plan, recipe, source, asdict(recipe.torchao)), write)
    return Artifact("torchao", folder, weight_bytes(folder), plan)


_EXPORT = {"gguf": _export_gguf, "torchao": _export_torchao}


def _key(plan: FormatPlan, recipe: Recipe, source: Source, extra: Any) -> str:
    rows = [[row.tensor.name, row.type] for row in plan.rows]
    return stage_key(asdict(source) | {"path": ""}, recipe.name, recipe.rounding, rows, extra, tools())


def tools() -> dict[str, str]:
    """The versions that can change a byte of an artifact."""
    packages = ("torch", "torchao", "transformers", "sentence-transformers", "gguf", "llama-cpp-python", "safetensors")
    return {"tierexport": __version__, **{name: version(name) for name in packages}, "llama.cpp": str(archive.pin())}


def describe(made: Plan, artifacts: Sequence[Artifact], imatrix: Imatrix, folder: Path) -> dict[str, Any]:
    """The manifest: what was made of what, tensor by tensor, with the bytes that are on the disk."""
    source, recipe = made.source, made.recipe
    return {
        "model": {
            "spec": source.spec,
            "name": source.name,
            "base_model": source.base_model,
            "revision": source.revision,
            "digest": source.digest,
            "licence": source.licence,
            "pooling": source.pooling,
            "max_tokens": source.max_tokens,
            "prompts": dict(source.prompts),
        },
        "recipe": {
            "name": recipe.name,
            "description": recipe.description,
            "rounding": recipe.rounding,
            "torchao": asdict(recipe.torchao),
            "calibration": {"dataset": imatrix.dataset, "texts": imatrix.chunks} if imatrix.path else None,
        },
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
