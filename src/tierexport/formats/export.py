"""Writes one format of a plan into an artifact folder, unless what is there was made from the same."""

import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierexport.base.archive import tools
from tierexport.base.progress import stage
from tierexport.base.stages import Stages, stage_key
from tierexport.formats.job import Job
from tierexport.formats.protocol import Format
from tierexport.model.batches import within
from tierexport.model.encoder import open_model
from tierexport.quantize.targets import NOTHING_ROUNDED, TUNING_STEPS, Rounded
from tierexport.recipe.planned import Artifact, FormatPlan

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROUNDERS = ("tierexport.quantize.layerwise", "tierexport.quantize.distill")
"""Modules whose code decides what error feedback makes of a matrix."""


def export(fmt: Format, job: Job, folder: Path) -> Artifact:
    """The artifact of a job in `folder`, by stages that are not run again where nothing of their key has changed.

    Raises PlanError when a value does not fit its type, MachineError when the disk is full.
    """
    fmt.unquantized(job.source)
    stages, key = Stages(folder), key_of(fmt, job)

    def write(made: Path) -> dict[str, Any]:
        rounded = _rounded(fmt, job, layers_done(folder, fmt.name), key) if job.plan.feeds_back else NOTHING_ROUNDED
        with stage(f"Writing {fmt.title}") as running:
            running.total(job.plan.parameters)
            fmt.write(job, rounded, fmt.place(job, made), running.step)
        return {"nearest": _left_to_nearest(job.plan, rounded.codes), "tuned": rounded.tuned}

    path = fmt.place(job, stages.run(fmt.name, key, write))
    layers_done(folder, fmt.name).clear()
    fmt.write_entrance(path, folder, path.relative_to(folder).as_posix())
    return Artifact(fmt.name, path, fmt.weight_bytes(path), job.plan.carried_out(**stages.notes(fmt.name)))


def layers_done(folder: Path, name: str) -> Stages:
    """Where the layers that are rounded already are kept until the artifact of a format is written."""
    return Stages(folder / f".rounding-{name}")


def key_of(fmt: Format, job: Job) -> str:
    """The key of the artifact's stage: all that decides its bytes."""
    rows = [[row.tensor.name, row.type, row.rounding] for row in job.plan.rows]
    source, feeds_back = asdict(job.source) | {"path": ""}, job.plan.feeds_back
    read = [job.made.texts.digest, job.recipe.calibration.tokens] if feeds_back else []
    code = (*fmt.writer, *(ROUNDERS if feeds_back else ()))
    return stage_key(code, source, job.recipe.name, job.recipe.rounding, rows, read, fmt.settings(job), tools())


def _left_to_nearest(plan: FormatPlan, codes: Collection[str]) -> list[str]:
    """The tensors for which error feedback was asked, and gained nothing."""
    return [row.tensor.name for row in plan.rows if row.rounding != "nearest" and row.tensor.name not in codes]


def round_by_layers(
    fmt: Format, job: Job, model: "SentenceTransformer", done: Stages, key: str, folder: Path | None = None
) -> Rounded:
    """What error feedback makes of a job's matrices; `model`, in fp32, has the result's weights in the end, or none where
    its layers may wait in `folder`.
    """
    from tierexport.quantize.layerwise import round_layers

    settings, targets = job.recipe.calibration, fmt.targets(job)
    texts = within(model, job.made.texts.texts, settings.tokens)
    with stage("Rounding layer by layer") as running:
        running.total(sum(each.tensor.parameters for each in targets if each.tensor.layer is not None or each.grid))
        return round_layers(model, texts, targets, tunable_of(fmt, job, model), done, key, running.step, folder)


def tunable_of(fmt: Format, job: Job, model: "SentenceTransformer") -> list[str]:
    """The parameters that the format keeps in fp32 as they are."""
    named = model.transformers_model.named_parameters()
    return fmt.tunable(job, {name: each.detach().numpy() for name, each in named if each.dim() == 1})


def _rounded(fmt: Format, job: Job, done: Stages, key: str) -> Rounded:
    """What error feedback makes of a plan's matrices, and tuning of that where the recipe asks for it."""
    from tierexport.quantize.distill import distill
    from tierexport.quantize.lesson import unread

    model = open_model(job.source)
    if job.recipe.rounding != "distill":
        done.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.root) as folder:
            return round_by_layers(fmt, job, model, done, key, Path(folder))
    texts = unread(model, job.made.texts.texts, job.recipe.calibration.tokens)
    tunable = tunable_of(fmt, job, model)
    rounded = round_by_layers(fmt, job, model, done, key)
    with stage("Tuning") as running:
        running.total(TUNING_STEPS)
        return distill(model, open_model(job.source), texts, rounded, tunable, done, key, running.step)
