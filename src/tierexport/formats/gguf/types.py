"""The native types of a GGUF: which a tier becomes, and which shapes each can take."""

from collections.abc import Mapping

import gguf

from tierexport.base.errors import PlanError
from tierexport.base.records import Tensor
from tierexport.formats.gguf import ggml
from tierexport.model.roles import UNQUANTIZED_ROLE
from tierexport.quantize.grids import GGUF_GRIDS
from tierexport.recipe.schema import Tier

NATIVE_OF_BITS: Mapping[int, tuple[str, ...]] = {
    2: ("Q2_K",),
    3: ("Q3_K",),
    4: ("IQ4_NL",),
    5: ("Q5_K", "Q5_0"),
    6: ("Q6_K",),
    8: ("Q8_0",),
    16: ("F16",),
    32: ("F32",),
}
"""The types a tier may become, the first that fits. All K-quants need rows of 256 n columns."""


WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "F16", "F32")
"""Types a recipe may name."""

INPUT_BLOCK: Mapping[str, int] = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"), 32),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), 256),
}
"""What a matrix of a type is multiplied with is rounded to 8 bits, so many values sharing a scale (`vec_dot_type` in
ggml-cpu.c: Q8_0 or Q8_1, and Q8_K). F16 and F32 are multiplied as they are.
"""


def fits(tensor: Tensor, native: str) -> bool:
    """Whether a tensor's rows are whole blocks of a native type."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[native]]
    return bool(tensor.shape[-1] % block == 0)


def native_type(tensor: Tensor, tier: Tier) -> tuple[str, str]:
    """The type that a tier becomes for a tensor, and a note where it is the recipe's fallback.

    Raises PlanError when neither the tier's type nor its fallback fits the shape.
    """
    named, fallback = tier.types.get("gguf"), tier.fallback.get("gguf")
    wanted = (named,) if named else NATIVE_OF_BITS[tier.bits]
    for name in (*wanted, *([fallback] if fallback else [])):
        if name not in WRITABLE:
            raise PlanError(f"tiers.{tier.name}: {name!r} is no GGUF type that can be written: {', '.join(WRITABLE)}")
    for name in wanted:
        if fits(tensor, name):
            return name, ""
    if fallback and fits(tensor, fallback):
        return fallback, f"fallback: {wanted[0]} does not fit"
    raise PlanError(_misfit(tensor, tier, wanted[0]))


def takes_feedback(tensor: Tensor, native: str) -> bool:
    """Whether it is a matrix of a layer or a table of tokens, and the type is one that codes are packed for; at 8 bits a table
    loses next to nothing.
    """
    if native not in GGUF_GRIDS or tensor.role == UNQUANTIZED_ROLE or len(tensor.shape) != 2:
        return False
    return tensor.layer is not None or (tensor.role == "token_embeddings" and native != "Q8_0")


def tensor_bytes(tensor: Tensor, native: str) -> int:
    """Rows times bytes per row."""
    columns = tensor.shape[-1]
    return tensor.parameters // columns * ggml.row_bytes(gguf.GGMLQuantizationType[native], columns)


def _misfit(tensor: Tensor, tier: Tier, native: str) -> str:
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[native]][0]
    fitting = [name for name in WRITABLE if fits(tensor, name)]
    return (
        f"{tensor.name} of shape {tensor.shape} can't take {native}: its blocks hold {block} values, and "
        f"{tensor.shape[-1]} columns are no multiple of that. Name a type that fits in tiers.{tier.name}.gguf "
        f"({', '.join(fitting)}), or allow one in tiers.{tier.name}.fallback.gguf"
    )
