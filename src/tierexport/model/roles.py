"""What each tensor of a model is, read off its GGUF name.

`gguf` knows how every architecture's Hugging Face names translate; a role is a neutral name for
the GGUF base name, and recipes speak of roles or of the groups they belong to.
"""

import functools
import re

import gguf

ROLE_OF_BASE = {
    "token_embd": "token_embeddings",
    "per_layer_token_embd": "token_embeddings",
    "attn_q": "attention_q",
    "attn_k": "attention_k",
    "attn_v": "attention_v",
    "attn_qkv": "attention_qkv",
    "attn_output": "attention_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
    "ffn_up_exps": "ffn_up",
    "ffn_gate_exps": "ffn_gate",
    "ffn_down_exps": "ffn_down",
}
"""GGUF base names (the part between `blk.N.` and `.weight`) that have a role of their own."""

GROUPS = {
    "embeddings": ("token_embeddings",),
    "attention": ("attention_q", "attention_k", "attention_v", "attention_qkv", "attention_output"),
    "ffn": ("ffn_up", "ffn_gate", "ffn_down"),
    "heads": ("head",),
}
"""Names a recipe may use for several roles at once."""

UNQUANTIZED_ROLE = "kept"
"""Whatever no format quantizes: vectors, norms, position and type tables, relative biases, routers."""

ROLES = tuple(dict.fromkeys([*ROLE_OF_BASE.values(), "head", "other"]))
"""Every role a recipe can claim, in the order in which they act."""

_GGUF_NAME = re.compile(r"(?:(?:enc\.|dec\.)?blk\.(?P<layer>\d+)\.)?(?P<base>.+?)\.(?:weight|bias)")
_UNQUANTIZED_BASES = re.compile(r".*norm.*|position_embd|token_types|attn_rel_b.*|ffn_gate_inp.*|ssm_conv1d|shortconv\.conv")


def role_and_layer(gguf_name: str, shape: tuple[int, ...]) -> tuple[str, int | None]:
    """Role and layer of a tensor by its GGUF name and shape (either order of dimensions).

    A matrix outside the layers that is no table is a "head" (pooler, dense module); one inside
    them that has no role of its own is "other".
    """
    match = _GGUF_NAME.fullmatch(gguf_name)
    base = match["base"] if match else gguf_name
    layer = int(match["layer"]) if match and match["layer"] else None
    if sum(size > 1 for size in shape) < 2 or _UNQUANTIZED_BASES.fullmatch(base) or not gguf_name.endswith(".weight"):
        return UNQUANTIZED_ROLE, layer
    return ROLE_OF_BASE.get(base, "other" if layer is not None else "head"), layer


def expand(role: str) -> tuple[str, ...]:
    """The roles that a recipe's word stands for; empty when the word is unknown."""
    return GROUPS.get(role) or ((role,) if role in ROLES else ())


def gguf_name(name: str) -> str | None:
    """The GGUF name of a Hugging Face tensor, whatever its architecture; None when gguf has none."""
    stem, _, suffix = name.rpartition(".")
    number = re.search(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", stem)
    pattern = f"{stem[: number.start()]}{{bid}}{stem[number.end() :]}" if number else stem
    base = next((_name_patterns()[prefix + pattern] for prefix in _PREFIXES if prefix + pattern in _name_patterns()), None)
    return f"{base.format(bid=number[0] if number else '')}.{suffix}" if base else None


_PREFIXES = ("", "model.")
"""`AutoModel` drops the prefix that checkpoints of decoders carry."""

_NOT_IN_GGUF = {
    f"{inside}.{short}": f"blk.{{bid}}.{base}"
    for inside, names in {
        "encoder.layer.{bid}.attention.attn": {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"},
        "encoder.layer.{bid}.attention.self": {"query_proj": "attn_q", "key_proj": "attn_k", "value_proj": "attn_v"},
        "encoder.albert_layer_groups.{bid}.albert_layers.0": {
            "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
            "attention.dense": "attn_output", "ffn": "ffn_up", "ffn_output": "ffn_down",
        },
    }.items()
    for short, base in names.items()
}  # fmt: skip
"""MPNet, DeBERTa and ALBERT, which llama.cpp doesn't run but torchao does."""


@functools.cache
def _name_patterns() -> dict[str, str]:
    mapping = gguf.TensorNameMap
    known = {**mapping.block_mappings_cfg, **mapping.mappings_cfg}
    return {key: gguf.TENSOR_NAMES[tensor] for tensor, keys in known.items() for key in keys} | _NOT_IN_GGUF
