"""torchao: a sentence-transformers folder whose weights torchao has quantized.

Two layouts. `portable`: torchao's own intx tensors, one byte per value, which stock transformers
loads and runs everywhere. `packed`: two 4-bit values per byte (`Int4Tensor`), which stock
transformers runs on CUDA with mslk, and `tierexport.load` anywhere.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from tierexport.encode import auto_class, open_model
from tierexport.errors import ArtifactError, MachineError, PlanError, SourceError
from tierexport.formats.int4 import pack_int4, plain, store
from tierexport.libraries import import_sentence_transformers
from tierexport.model_folder import modules, transformer_folder
from tierexport.records import Floats, FormatPlan, PlannedTensor, Source, Tensor, Tier, TorchaoSettings
from tierexport.roles import KEPT_ROLE, gguf_name, role_and_layer
from tierexport.rounding.grids import int4_grid
from tierexport.rounding.layerwise import Rounded, Target
from tierexport.source import module_weights
from tierexport.workdir import write_json, write_whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NATIVE_OF_BITS = {4: "int4", 8: "int8", 16: "float16", 32: "float32"}
"""The type of a tier. Other widths would take int8's bytes and keep fewer levels, so none is offered."""


_LOCAL_FILE = re.compile(r"~?/[^/]+/|[A-Za-z]:[\\/]|\.\.?/|file:")
"""How the path of a file of one machine begins."""


class TorchaoFormat:
    """A sentence-transformers folder in one of the two layouts."""

    name = "torchao"

    def __init__(self, settings: TorchaoSettings) -> None:
        self.settings = settings

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        """Every tensor of the module tree, built without memory, and of the modules after it.

        Raises SourceError when transformers does not know the architecture.
        """
        found = [_tensor(name, shape, kind) for name, (shape, kind) in _module_tree(transformer_folder(source.path)).items()]
        for file in module_weights(source.path):
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118  # not a dict
                    shape = tuple(opened.get_slice(name).get_shape())
                    found.append(Tensor(f"{file.parent.name}/{name}", KEPT_ROLE, None, shape))
        return tuple(found)

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        """The type for a tensor, and a note where it is the recipe's fallback.

        Raises PlanError when neither the tier's type nor its fallback fits.
        """
        wanted = tier.types.get(self.name) or NATIVE_OF_BITS.get(tier.bits)
        fallback = tier.fallback.get(self.name)
        known = ", ".join(NATIVE_OF_BITS.values())
        if wanted is None:
            raise PlanError(f"torchao has no {tier.bits}-bit type here: name one in tiers.{tier.name}.torchao ({known})")
        for name in (wanted, fallback or wanted):
            if name not in NATIVE_OF_BITS.values():
                raise PlanError(f"tiers.{tier.name}: {name!r} is no torchao type: {known}")
        problem = _misfit(tensor, wanted, self.settings)
        if problem is None:
            return wanted, ""
        if fallback and _misfit(tensor, fallback, self.settings) is None:
            return fallback, f"fallback: {problem}"
        raise PlanError(
            f"{tensor.name} of shape {tensor.shape} can't take {wanted}: {problem}. Name another type in "
            f"tiers.{tier.name}.torchao, or allow one in tiers.{tier.name}.fallback.torchao"
        )

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        """Whether it is a matrix of a layer at 4 bits."""
        return native == "int4" and tensor.layer is not None and len(tensor.shape) == 2

    def tensor_bytes(self, tensor: Tensor, native: str) -> int:
        """Codes, scales and zero points, as safetensors holds them."""
        values, columns = tensor.parameters, tensor.shape[-1]
        packed = self.settings.layout == "packed"
        if native in ("float32", "float16"):
            return values * (4 if native == "float32" else 2)
        groups = values // (self.settings.group_size if native == "int4" else columns)
        if native == "int4" and packed:
            return values // 2 + groups * (2 + 2)
        return values + groups * ((2 if packed else 4) + 1)


def _misfit(tensor: Tensor, native: str, settings: TorchaoSettings) -> str | None:
    """Why a tensor can't take a type, or None."""
    if native != "int4":
        return None
    if tensor.shape[-1] % settings.group_size:
        return f"{tensor.shape[-1]} columns are no multiple of torchao.group_size = {settings.group_size}"
    if settings.layout == "packed" and tensor.role == "token_embeddings":
        return "packed 4-bit rows can't be looked up, only multiplied"
    return None


# --- what a model consists of


def _module_tree(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and kind of module ("linear", "embedding", "other") of every tensor that is saved."""
    import_sentence_transformers()
    import torch
    from transformers import AutoConfig

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            model = auto_class(config).from_config(config)
    except Exception as error:  # a stranger's configuration fails in any way
        raise SourceError(f"transformers does not know the architecture of {path}: {error}") from error
    kinds = {torch.nn.Linear: "linear", torch.nn.Embedding: "embedding"}
    found = dict(model.named_modules())

    def kind(name: str) -> str:
        module = found[name.rpartition(".")[0]]
        return next((kind for base, kind in kinds.items() if isinstance(module, base)), "other")

    tensors = model.state_dict(keep_vars=True)
    saved = {id(tensor): name for name, tensor in reversed(tensors.items())}  # of tied ones the first
    return {name: (tuple(tensor.shape), kind(name)) for name, tensor in tensors.items() if saved[id(tensor)] == name}


def _tensor(name: str, shape: tuple[int, ...], kind: str) -> Tensor:
    """A tensor with its role. Only matrices of Linear and Embedding modules can be quantized."""
    known = gguf_name(name)
    if kind == "other" or len(shape) < 2 or (kind == "embedding" and known is None):
        return Tensor(name, KEPT_ROLE, role_and_layer(known, shape)[1] if known else None, shape)
    role, layer = role_and_layer(known or name, shape)
    return Tensor(name, role, layer, shape)


# --- writing


def targets(plan: FormatPlan, settings: TorchaoSettings, source: Source) -> list[Target]:
    """The matrices of a plan as rounding layer by layer sees them."""
    parameters = dict(open_model(source).transformers_model.named_parameters())
    configs = {native: _config(native, settings) for native in ("int4", "int8")}

    def target(row: PlannedTensor) -> Target:
        def values() -> Floats:
            found: Floats = parameters[row.tensor.name].detach().numpy()
            return found

        def nearest() -> Floats:
            import torch

            rows, columns = row.tensor.shape
            alone = torch.nn.Linear(columns, rows, bias=False)
            alone.weight = parameters[row.tensor.name]
            if row.type == "float16":
                _to_half(alone, "weight", row.tensor.name)
            else:
                _quantize(alone, row.type, configs[row.type], settings)
            return plain(alone.weight).detach().numpy()

        grid = int4_grid(settings.group_size, settings.layout) if row.rounding != "nearest" else None
        return Target(row.tensor, values, nearest, grid)

    crushed = (row for row in plan.rows if row.type != "float32" and row.tensor.role != KEPT_ROLE)
    return [target(row) for row in crushed if row.tensor.name in parameters and len(row.tensor.shape) == 2]


def tunable(parameters: Mapping[str, Floats]) -> list[str]:
    """Which of a model's parameters the folder keeps as they are: biases and norms, by their names."""
    return [name for name, values in parameters.items() if values.ndim == 1]


def write_torchao(
    plan: FormatPlan, settings: TorchaoSettings, source: Source, rounded: Rounded, folder: Path,
    step: Callable[[int], None],
) -> None:  # fmt: skip
    """Quantize the source as planned and save it as a sentence-transformers folder.

    A matrix with codes is stored by them, a tuned parameter by its new values, the others are rounded
    by torchao. `step` hears the parameters done. Raises PlanError when a value does not fit its type,
    MachineError when the disk is full.
    """
    import torch

    model = open_model(source)
    transformer: Any = model.transformers_model
    configs = {native: _config(native, settings) for native in ("int4", "int8")}
    parameters = dict(transformer.named_parameters())
    for name, values in rounded.kept.items():
        parameters[name].data = torch.from_numpy(values)
    quantized: dict[str, list[str]] = {}
    for row in plan.rows:
        tied = _others(transformer, row.tensor.name, parameters[row.tensor.name]) if row.tensor.name in parameters else []
        module_name, _, name = row.tensor.name.rpartition(".")
        if row.type in configs:
            module = transformer.get_submodule(module_name)
            _quantize(module, row.type, configs[row.type], settings)
            if row.tensor.name in rounded.codes:
                store(module.weight, rounded.codes[row.tensor.name])
            quantized.setdefault(row.type, []).append(module_name)
        elif row.type == "float16":
            _to_half(transformer.get_submodule(module_name), name, row.tensor.name)
        for holder, its_name in tied:
            holder.register_parameter(its_name, None)  # stored once; whoever loads it ties it again
        step(row.tensor.parameters)
    if quantized:
        _declare(transformer, {_pattern(names): configs[native] for native, names in sorted(quantized.items())})
    _save(model, settings, folder)


def _save(model: Any, settings: TorchaoSettings, folder: Path) -> None:
    """Write a quantized model, the same bytes each time. Raises MachineError when the disk is full."""
    try:
        model.save_pretrained(str(folder), create_model_card=False)
    except SafetensorError as error:
        raise MachineError(f"{folder} can't be written: {error}") from error
    _state_dtype(folder, "bfloat16" if settings.layout == "packed" else "float32")
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Make a saved folder the same from build to build, and readable for everybody."""
    for file in folder.rglob("*"):
        if file.suffix == ".safetensors":
            _sort_metadata(file)
        elif file.suffix == ".json":
            _drop_places(file)
        file.chmod(0o755 if file.is_dir() else 0o644)


def _others(transformer: Any, planned: str, parameter: Any) -> list[tuple[Any, str]]:
    """The modules beside the planned one that hold the same parameter, each with its name there."""
    named = ((module, *each) for module in transformer.modules() for each in module.named_parameters(recurse=False))
    own = transformer.get_submodule(planned.rpartition(".")[0])
    return [(module, name) for module, name, each in named if each is parameter and module is not own]


def write_entrance(folder: Path) -> None:
    """Let `SentenceTransformer(folder.parent)` open a torchao folder, and a hub's repository so made by its name."""
    listed = [{**module, "path": f"{folder.name}/{module['path']}".rstrip("/")} for module in modules(folder)]
    write_json(folder.parent / "modules.json", listed)
    settings = "config_sentence_transformers.json"
    write_whole(folder.parent / settings, (folder / settings).read_bytes())


def _config(native: str, settings: TorchaoSettings) -> Any:
    """Torchao's configuration for a native type, as the saved config.json will state it."""
    import torch
    from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

    # A zero point is stored either way; using it took a third off the error at 4 bits (docs/log.md).
    mapping = MappingType.ASYMMETRIC
    if native == "int8":
        return IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0), mapping_type=mapping)
    if settings.layout == "packed":
        return Int4WeightOnlyConfig(group_size=settings.group_size)
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, native), granularity=PerGroup(settings.group_size), mapping_type=mapping
    )


def _quantize(module: Any, native: str, config: Any, settings: TorchaoSettings) -> None:
    import torch
    from torchao.quantization import quantize_

    if settings.layout == "packed":
        # The packed layout runs in bfloat16, so its scales are chosen for the bfloat16 weights.
        if native == "int4":
            packed = pack_int4(module.weight.detach(), settings.group_size)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
            return
        module.weight = torch.nn.Parameter(module.weight.detach().bfloat16(), requires_grad=False)
    quantize_(module, config, filter_fn=lambda *_: True)


def _to_half(module: Any, parameter: str, name: str) -> None:
    import torch

    half = getattr(module, parameter).detach().half()
    if not torch.isfinite(half).all():
        raise PlanError(f"{name} has values beyond fp16's range: give its tier 32 bits")
    setattr(module, parameter, torch.nn.Parameter(half, requires_grad=False))


def _pattern(names: list[str]) -> str:
    return f"re:^(?:{'|'.join(re.escape(name) for name in names)})$"


def _declare(transformer: Any, configs: Mapping[str, Any]) -> None:
    """Make transformers save the quantized tensors, and say in config.json how they were made."""
    from torchao.quantization import FqnToConfig
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    config = TorchAoConfig(quant_type=FqnToConfig(dict(configs)))
    transformer.config.quantization_config = config
    transformer.hf_quantizer = TorchAoHfQuantizer(config, pre_quantized=True)


def _state_dtype(folder: Path, dtype: str) -> None:
    """Have readers compute in `dtype`: transformers states that of the first tensor it meets."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _drop_places(path: Path) -> None:
    """Leave out where the source's files, or those it was made of, lay on somebody's disk: "name_or_path", "vocab_file"."""
    document = json.loads(path.read_text("utf-8"))
    kept = _without_places(document)
    if kept != document:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _without_places(document: Any, inside: bool = False) -> Any:
    """The same where it is a table; inside its tables anything may be text but for "name_or_path"."""
    if not isinstance(document, dict):
        return document
    return {
        key: _without_places(value, True)
        for key, value in document.items()
        if not (isinstance(value, str) and _LOCAL_FILE.match(value) and (not inside or "name_or_path" in key))
    }


def _sort_metadata(file: Path) -> None:
    """Put a safetensors header's metadata in order: the library writes it in that of a hash map.

    Without this, two builds of the same inputs would differ.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) > length:
            raise RuntimeError(f"{file}: the ordered header is longer than the one that was written")
        opened.seek(8)
        opened.write(ordered.ljust(length))


# --- reading back


def load(path: str, device: str = "cpu") -> "SentenceTransformer":
    """See `tierexport.load`."""
    folder = Path(path)
    if not (folder / "modules.json").is_file():
        raise ArtifactError(f"{folder} is not a sentence-transformers folder: it has no modules.json")
    st = import_sentence_transformers()
    try:
        model: SentenceTransformer = st.SentenceTransformer(str(folder), device=device, local_files_only=True)
    except Exception as error:  # a stranger's files fail in any way
        raise ArtifactError(f"{folder} can't be loaded: {type(error).__name__}: {error}") from error
    if _is_packed(model) and not _has_int4_kernel(device):
        _dequantize(model)
    return model


def _is_packed(model: Any) -> bool:
    from torchao.quantization import Int4Tensor

    return any(isinstance(parameter, Int4Tensor) for parameter in model.parameters())


def _has_int4_kernel(device: str) -> bool:
    import torch

    return device.startswith("cuda") and hasattr(torch.ops, "mslk") and hasattr(torch.ops.mslk, "bf16i4bf16_rowwise")


def _dequantize(model: Any) -> None:
    """Replace every quantized weight by its float32 values, and compute in float32."""
    import torch
    from torchao.utils import TorchAOBaseTensor

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, TorchAOBaseTensor):
                setattr(module, name, torch.nn.Parameter(plain(parameter), requires_grad=False))
    model.float()


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files of a folder, headers included."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
