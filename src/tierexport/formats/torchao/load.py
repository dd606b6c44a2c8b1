"""Opens a torchao folder as a SentenceTransformer, on machines without its 4-bit kernels through dequantized weights."""

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
    return model


def _is_packed(model: Any) -> bool:
    from torchao.quantization import Int4Tensor

    return any(isinstance(parameter, Int4Tensor) for parameter in model.parameters())


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
