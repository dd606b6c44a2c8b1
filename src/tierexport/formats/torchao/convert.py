"""Quantizes single modules by torchao, and has transformers save them."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from tierexport.base.errors import PlanError
from tierexport.formats.torchao.int4 import plain
from tierexport.formats.torchao.pack import pack_int4
from tierexport.formats.torchao.types import DYNAMIC
from tierexport.recipe.schema import TorchaoSettings


def config_of(native: str, settings: TorchaoSettings) -> Any:
    """Torchao's configuration for a native type, as the saved config.json will state it."""
    from torchao.quantization import (
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerAxis,
        PerGroup,
    )

    if native == DYNAMIC:
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    # A zero point is stored either way; using it took a third off the error at 4 bits (docs/log.md).
    mapping = MappingType.ASYMMETRIC
    if native == "int8":
        return IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0), mapping_type=mapping)
    if settings.layout == "packed":
        return Int4WeightOnlyConfig(group_size=settings.group_size)
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, native), granularity=PerGroup(settings.group_size), mapping_type=mapping
    )


def quantize(module: Any, native: str, config: Any, settings: TorchaoSettings) -> None:
    """Round a module's weight to a native type by torchao."""
    from torchao.quantization import quantize_

    if settings.layout == "packed":
        # The packed layout runs in bfloat16, so its scales are chosen for the bfloat16 weights.
        if native == "int4":
            packed = pack_int4(module.weight.detach(), settings.group_size)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
            return
        module.weight = torch.nn.Parameter(module.weight.detach().bfloat16(), requires_grad=False)
    quantize_(module, config, filter_fn=lambda *_: True)


def nearest(weight: torch.Tensor, native: str, settings: TorchaoSettings) -> torch.Tensor:
    """What torchao's rounding to one of its types leaves of a matrix, float32 (rows, columns)."""
    rows, columns = weight.shape
    alone: Any = torch.nn.Linear(columns, rows, bias=False)
    alone.weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize(alone, native, config_of(native, settings), settings)
    return plain(alone.weight).detach()


def to_half(module: Any, parameter: str, name: str) -> None:
    """Keep a parameter of a module in fp16. Raises PlanError for values beyond its range."""
    half = halved(getattr(module, parameter).detach(), name)
    setattr(module, parameter, torch.nn.Parameter(half, requires_grad=False))


def halved(values: torch.Tensor, name: str) -> torch.Tensor:
    """The values of a tensor in fp16. Raises PlanError for some beyond its range."""
    half = values.half()
    if not torch.isfinite(half).all():
        raise PlanError(f"{name} has values beyond fp16's range: give its tier 32 bits")
    return half


def pattern(names: list[str]) -> str:
    """A pattern over module names, as config.json has it."""
    return f"re:^(?:{'|'.join(re.escape(name) for name in names)})$"


def declare(transformer: Any, configs: Mapping[str, Any]) -> None:
    """Make transformers save the quantized tensors, and say in config.json how they were made."""
    from torchao.quantization import FqnToConfig
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    config = TorchAoConfig(quant_type=FqnToConfig(dict(configs)))
    transformer.config.quantization_config = config
    transformer.hf_quantizer = TorchAoHfQuantizer(config, pre_quantized=True)
