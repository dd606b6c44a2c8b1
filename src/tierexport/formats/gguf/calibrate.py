"""The imatrix that a plan needs: the one its recipe names, or one measured on the calibration texts."""

from pathlib import Path

from tierexport.base.archive import tools
from tierexport.base.progress import stage
from tierexport.base.records import NO_IMATRIX, Imatrix
from tierexport.base.stages import stage_key
from tierexport.formats.gguf.imatrix import check_fits, read_imatrix, write_imatrix
from tierexport.model.batches import prompted, token_ids, within
from tierexport.model.encoder import open_model
from tierexport.model.stages import source_stages
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import FormatPlan

BLIND_TO_IMPORTANCE = ("F32", "F16", "Q8_0")
"""Types that come out the same with importance and without."""


def importance(planned: FormatPlan, made: Plan) -> Imatrix:
    """The imatrix a plan needs: the one its recipe names, or one measured now (or before)."""
    settings = made.recipe.calibration
    if all(row.type in BLIND_TO_IMPORTANCE for row in planned.rows):
        return NO_IMATRIX
    imatrix = read_imatrix(Path(settings.imatrix) if settings.imatrix else _measured_imatrix(made, planned))
    check_fits(imatrix, [row.tensor for row in planned.rows])
    return imatrix


def _measured_imatrix(made: Plan, planned: FormatPlan) -> Path:
    from tierexport.quantize.importance import measure_importance

    dataset, tokens = made.texts.digest, made.recipe.calibration.tokens

    def measure(folder: Path) -> None:
        model = open_model(made.source)
        texts = within(model, made.texts.texts, tokens)
        running.total(sum(map(len, token_ids(model, prompted(model.prompts, texts)))))
        found = measure_importance(model, texts, dataset, running.step)
        write_imatrix(found, [row.tensor for row in planned.rows], folder / "imatrix.gguf")

    with stage("Calibrating") as running:
        folder = source_stages(made.source).run(
            f"imatrix-{dataset}-{tokens}", stage_key(__name__, dataset, tokens, tools()), measure
        )
    return folder / "imatrix.gguf"
