"""Writes a torchao folder: the source model, quantized as planned, saved by sentence-transformers."""

import functools
from pathlib import Path
from typing import Any

import torch

from tierexport.base.files import write_json, write_whole, writing
from tierexport.base.records import Floats
from tierexport.formats.job import Job, Progress
from tierexport.formats.torchao.convert import config_of, declare, halved, nearest, pattern, quantize, to_half
from tierexport.formats.torchao.pack import store
from tierexport.formats.torchao.smooth import inputs_of, store_smoothed
from tierexport.formats.torchao.tidy import state_dtype, tidy
from tierexport.formats.torchao.types import DYNAMIC
from tierexport.model.batches import within
from tierexport.model.encoder import open_model
from tierexport.model.folder import modules
from tierexport.model.roles import UNQUANTIZED_ROLE
from tierexport.quantize.grids import int4_grid
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.planned import PlannedTensor
from tierexport.recipe.schema import TorchaoSettings

QUANTIZED = ("int4", "int8", DYNAMIC)
"""The native types that torchao stores."""


def targets(job: Job) -> list[Target]:
    """The matrices of a plan as rounding layer by layer sees them."""
    settings = job.recipe.torchao
    parameters = dict(open_model(job.source).transformers_model.named_parameters())

    def target(row: PlannedTensor) -> Target:
        def values() -> Floats:
            found: Floats = parameters[row.tensor.name].detach().numpy()
            return found

        def rounded() -> Floats:
            weight = parameters[row.tensor.name].detach()
            half = row.type == "float16"
            found: Floats = (halved(weight, row.tensor.name).float() if half else nearest(weight, row.type, settings)).numpy()
            return found

        grid = int4_grid(settings.group_size, settings.layout) if row.rounding != "nearest" else None
        return Target(row.tensor, values, rounded, grid)

    quantized = (row for row in job.plan.rows if row.type != "float32" and row.tensor.role != UNQUANTIZED_ROLE)
    return [target(row) for row in quantized if row.tensor.name in parameters and len(row.tensor.shape) == 2]


def write_torchao(job: Job, rounded: Rounded, folder: Path, progress: Progress) -> None:
    """Quantize the source as planned and save it as a sentence-transformers folder.

    A matrix with codes is stored by them, a parameter with new values in fp32 by those, the others are
    rounded by torchao. `progress`: called with the parameters done. Raises PlanError when a value does not fit its type,
    MachineError when the disk is full.
    """
    settings = job.recipe.torchao
    model = open_model(job.source)
    transformer: Any = model.transformers_model
    configs = {native: config_of(native, settings) for native in QUANTIZED}
    read = _inputs(model, job)
    parameters = dict(transformer.named_parameters())
    for name, values in rounded.fp32.items():
        parameters[name].data = torch.from_numpy(values)
    quantized: dict[str, list[str]] = {}
    for row in job.plan.rows:
        tied = _others(transformer, row.tensor.name, parameters[row.tensor.name]) if row.tensor.name in parameters else []
        module_name, _, name = row.tensor.name.rpartition(".")
        if row.type in configs:
            module = transformer.get_submodule(module_name)
            if row.type == DYNAMIC:
                store_smoothed(module, read.pop(module_name), settings)
            else:
                quantize(module, row.type, configs[row.type], settings)
            if row.tensor.name in rounded.codes:
                store(module.weight, rounded.codes[row.tensor.name])
            quantized.setdefault(row.type, []).append(module_name)
        elif row.type == "float16":
            to_half(transformer.get_submodule(module_name), name, row.tensor.name)
        for holder, its_name in tied:
            holder.register_parameter(its_name, None)  # stored once; whoever loads it ties it again
        progress(row.tensor.parameters)
    if quantized:
        declare(transformer, {pattern(names): configs[native] for native, names in sorted(quantized.items())})
    _save(model, settings, folder)


def _inputs(model: Any, job: Job) -> dict[str, torch.Tensor]:
    """What the Linears read, float32 (rows, columns) by name, whose inputs will be rounded."""
    dynamic = [row.tensor.name.removesuffix(".weight") for row in job.plan.rows if row.type == DYNAMIC]
    if not dynamic:
        return {}
    texts = within(model, job.made.texts.texts, job.recipe.calibration.tokens)
    return inputs_of(model, texts, dynamic)


def _save(model: Any, settings: TorchaoSettings, folder: Path) -> None:
    """Write a quantized model by the names of its modules, the same bytes each time. Raises MachineError on a full disk.

    Transformers would fuse what it took apart when it loaded a checkpoint (of Nomic-BERT, Jina v3, GTE), and does not take
    quantized values apart again.
    """
    transformer = model.transformers_model
    transformer.save_pretrained = functools.partial(transformer.save_pretrained, save_original_format=False)
    with writing(folder):
        model.save_pretrained(str(folder), create_model_card=False)
    state_dtype(folder, "bfloat16" if settings.layout == "packed" else "float32")
    tidy(folder)


def _others(transformer: Any, planned: str, parameter: Any) -> list[tuple[Any, str]]:
    """The modules beside the planned one that hold the same parameter, each with its name there."""
    named = ((module, *each) for module in transformer.modules() for each in module.named_parameters(recurse=False))
    own = transformer.get_submodule(planned.rpartition(".")[0])
    return [(module, name) for module, name, each in named if each is parameter and module is not own]


def write_entrance(folder: Path, top: Path, at: str) -> None:
    """Let `SentenceTransformer(top)` open a torchao folder that lies `at` below it, and a hub's repository by its name."""
    listed = [{**module, "path": f"{at}/{module['path']}".rstrip("/")} for module in modules(folder)]
    write_json(top / "modules.json", listed)
    settings = "config_sentence_transformers.json"
    write_whole(top / settings, (folder / settings).read_bytes())
