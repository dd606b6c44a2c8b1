"""Opens a torchao folder as a SentenceTransformer: compiled where it multiplies integers, through dequantized weights where it
would take 4-bit kernels that are not there.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tierexport.base.errors import ArtifactError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.formats.torchao.int4 import plain

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load(folder: Path, device: str) -> "SentenceTransformer":
    """See `tierexport.load`."""
    if not (folder / "modules.json").is_file():
        raise ArtifactError(f"{folder} is not a sentence-transformers folder: it has no modules.json")
    st = import_sentence_transformers()
    try:
        model: SentenceTransformer = st.SentenceTransformer(str(folder), device=device, local_files_only=True)
    except Exception as error:  # a stranger's files fail in any way
        raise ArtifactError(f"{folder} can't be loaded: {type(error).__name__}: {error}") from error
    if _is_packed(model) and not _has_int4_kernel(device):
        _dequantize(model)
    if _is_fast(model):
        compile_transformer(model)
    return model


def _is_packed(model: Any) -> bool:
    from torchao.quantization import Int4Tensor

    return any(isinstance(parameter, Int4Tensor) for parameter in model.parameters())


def _is_fast(model: Any) -> bool:
    from torchao.quantization import Int8Tensor

    return any(isinstance(each, Int8Tensor) and each.act_quant_kwargs is not None for each in model.parameters())


def compile_transformer(model: Any) -> None:
    """Have the transformer compiled when the first texts come: once for one text alone, once for any batch of several.

    Raises ArtifactError where there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ArtifactError(
            'the layout "fast" is compiled on the machine that runs it, which takes a C++ compiler: install g++, or name '
            "yours in CXX. SentenceTransformer(path) opens the folder without, and runs it no faster than fp32"
        ) from None
    # Frozen weights are constants, which the compiler packs for its kernels once, not at each call.
    # Dynamo asks the module's own settings whether they will be, before it reads a compilation's options.
    # sentence-transformers calls `forward`, and so passes by what `Module.compile` would put before it.
    transformer = model.transformers_model
    frozen = torch._inductor.config.patch(freezing=True)
    transformer.forward = frozen(torch.compile(transformer.forward, dynamic=True))


def _has_int4_kernel(device: str) -> bool:

    return device.startswith("cuda") and hasattr(torch.ops, "mslk") and hasattr(torch.ops.mslk, "bf16i4bf16_rowwise")


def _dequantize(model: Any) -> None:
    """Replace every quantized weight by its float32 values, and compute in float32."""
    from torchao.utils import TorchAOBaseTensor

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, TorchAOBaseTensor):
                setattr(module, name, torch.nn.Parameter(plain(parameter), requires_grad=False))
    model.float()
