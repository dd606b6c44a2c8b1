"""The native types of a torchao folder: which a tier becomes, and which tensors can take each."""

from tierexport.base.errors import PlanError
from tierexport.base.records import Tensor
from tierexport.recipe.schema import Tier, TorchaoSettings

NATIVE_OF_BITS = {4: "int4", 8: "int8", 16: "float16", 32: "float32"}
"""The type of a tier. Other widths would take int8's bytes and keep fewer levels, so none is offered."""


def native_type(tensor: Tensor, tier: Tier, settings: TorchaoSettings) -> tuple[str, str]:
    """The type that a tier becomes for a tensor, and a note where it is the recipe's fallback.

    Raises PlanError when neither the tier's type nor its fallback fits.
    """
    wanted, fallback = tier.types.get("torchao") or NATIVE_OF_BITS.get(tier.bits), tier.fallback.get("torchao")
    known = ", ".join(NATIVE_OF_BITS.values())
    if wanted is None:
        raise PlanError(f"torchao has no {tier.bits}-bit type here: name one in tiers.{tier.name}.torchao ({known})")
    for name in (wanted, fallback or wanted):
        if name not in NATIVE_OF_BITS.values():
            raise PlanError(f"tiers.{tier.name}: {name!r} is no torchao type: {known}")
    problem = _misfit(tensor, wanted, settings)
    if problem is None:
        return wanted, ""
    if fallback and _misfit(tensor, fallback, settings) is None:
        return fallback, f"fallback: {problem}"
    raise PlanError(
        f"{tensor.name} of shape {tensor.shape} can't take {wanted}: {problem}. Name another type in "
        f"tiers.{tier.name}.torchao, or allow one in tiers.{tier.name}.fallback.torchao"
    )


def tensor_bytes(tensor: Tensor, native: str, settings: TorchaoSettings) -> int:
    """Codes, scales and zero points, as safetensors holds them."""
    values, columns = tensor.parameters, tensor.shape[-1]
    packed = settings.layout == "packed"
    if native in ("float32", "float16"):
        return values * (4 if native == "float32" else 2)
    groups = values // (settings.group_size if native == "int4" else columns)
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
