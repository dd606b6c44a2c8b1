"""The native types of a torchao folder: which a tier becomes, and which tensors can take each."""

from tierexport.base.errors import PlanError
from tierexport.base.records import Tensor
from tierexport.recipe.schema import Tier, TorchaoSettings

NATIVE_OF_BITS = {4: "int4", 8: "int8", 16: "float16", 32: "float32"}
"""The type of a tier. Other widths would take int8's bytes and keep fewer levels, so none is offered."""

DYNAMIC = "int8_dynamic"
"""Int8 weights multiplied, in integers, with inputs that are rounded to int8 as they come: 8 bits in the layout "fast"."""

NATIVE_TYPES = (*NATIVE_OF_BITS.values(), DYNAMIC)


def native_type(tensor: Tensor, tier: Tier, settings: TorchaoSettings) -> tuple[str, str]:
    """The type that a tier becomes for a tensor, and a note where it is the recipe's fallback.

    Raises PlanError when neither the tier's type nor its fallback fits.
    """
    fallback = tier.fallback.get("torchao")
    wanted = tier.types.get("torchao") or _of_bits(tensor, tier.bits, settings)
    known = ", ".join(NATIVE_TYPES)
    if wanted is None:
        raise PlanError(f"torchao has no {tier.bits}-bit type here: name one in tiers.{tier.name}.torchao ({known})")
    for name in (wanted, fallback or wanted):
        if name not in NATIVE_TYPES:
            raise PlanError(f"tiers.{tier.name}: {name!r} is no torchao type: {known}")
    problem = misfit(tensor, wanted, settings)
    if problem is None:
        return wanted, ""
    if fallback and misfit(tensor, fallback, settings) is None:
        return fallback, f"fallback: {problem}"
    raise PlanError(
        f"{tensor.name} of shape {tensor.shape} can't take {wanted}: {problem}. Name another type in "
        f"tiers.{tier.name}.torchao, or allow one in tiers.{tier.name}.fallback.torchao"
    )


def _of_bits(tensor: Tensor, bits: int, settings: TorchaoSettings) -> str | None:
    """The type that bits stand for. Outside of layers, inputs stay as they are: there is little to gain."""
    native = NATIVE_OF_BITS.get(bits)
    return DYNAMIC if native == "int8" and settings.layout == "fast" and tensor.layer is not None else native


def takes_feedback(tensor: Tensor, native: str) -> bool:
    """Whether it is a matrix of a layer or a table of tokens, at 4 bits."""
    in_turn = tensor.layer is not None or tensor.role == "token_embeddings"
    return native == "int4" and in_turn and len(tensor.shape) == 2


def tensor_bytes(tensor: Tensor, native: str, settings: TorchaoSettings) -> int:
    """Codes, scales and zero points, as safetensors holds them."""
    values, columns = tensor.parameters, tensor.shape[-1]
    packed = settings.layout == "packed"
    if native in ("float32", "float16"):
        return values * (4 if native == "float32" else 2)
    groups = values // (settings.group_size if native == "int4" else columns)
    if native == "int4" and packed:
        return values // 2 + groups * (2 + 2)
    smoothing = 4 * columns if native == DYNAMIC else 0
    return values + groups * ((2 if packed else 4) + 1) + smoothing


def misfit(tensor: Tensor, native: str, settings: TorchaoSettings) -> str | None:
    """Why a tensor can't take a type, or None."""
    if native == DYNAMIC and settings.layout != "fast":
        return f'torchao.layout = "{settings.layout}" multiplies no integers, "fast" does'
    if native == DYNAMIC and tensor.role == "token_embeddings":
        return "rows are looked up, not multiplied"
    if native != "int4":
        return None
    if settings.layout == "fast":
        return "torchao multiplies no 4-bit integers on a CPU, so they would take int8's bytes and time, and lose more"
    if tensor.shape[-1] % settings.group_size:
        return f"{tensor.shape[-1]} columns are no multiple of torchao.group_size = {settings.group_size}"
    if settings.layout == "packed" and tensor.role == "token_embeddings":
        return "packed 4-bit rows can't be looked up, only multiplied"
    return None
