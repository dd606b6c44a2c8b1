"""A sentence-transformers folder with torchao's weights, as the rest of tierexport sees it.

Two layouts. `portable`: torchao's own intx tensors, one byte per value, which stock transformers
loads and runs everywhere. `packed`: two 4-bit values per byte (`Int4Tensor`), which stock
transformers runs on CUDA with mslk, and `tierexport.load` anywhere.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierexport.artifact.folder import CODEC
from tierexport.base.records import NO_IMATRIX, Floats, FormatPlan, Imatrix, Recipe, Source, Tensor, Tier, TorchaoSettings
from tierexport.formats.protocol import Job, Progress
from tierexport.formats.torchao import tree, types, write
from tierexport.formats.torchao.reader import Opened
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.plan import Plan

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Torchao:
    """torchao: quantized by torchao, saved and run by sentence-transformers."""

    name = "torchao"
    title = "the torchao folder"
    writer: tuple[str, ...] = ("tierexport.formats.torchao.write",)
    reader: tuple[str, ...] = ("tierexport.formats.torchao.reader",)
    converted_by_others = False

    def __init__(self, recipe: Recipe | None = None) -> None:
        self.layout = recipe.torchao if recipe else TorchaoSettings()

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        """Every tensor of the module tree and of the modules after it. Raises SourceError."""
        return tree.tensors(source)

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        """The type for a tensor, and a note where it is the recipe's fallback; `types.native_type`."""
        return types.native_type(tensor, tier, self.layout)

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        """Whether it is a matrix of a layer at 4 bits."""
        return native == "int4" and tensor.layer is not None and len(tensor.shape) == 2

    def tensor_bytes(self, tensor: Tensor, native: str) -> int:
        """Codes, scales and zero points, as safetensors holds them."""
        return types.tensor_bytes(tensor, native, self.layout)

    def unquantized(self, source: Source) -> None:
        """None: the source's own files are what is quantized."""

    def calibrated(self, plan: FormatPlan, made: Plan) -> Imatrix:
        """None: torchao rounds every value alike."""
        del plan, made
        return NO_IMATRIX

    def targets(self, job: Job) -> list[Target]:
        return write.targets(job)

    def tunable(self, job: Job, parameters: Mapping[str, Floats]) -> list[str]:
        """Biases and norms."""
        del job
        return [name for name, values in parameters.items() if values.ndim == 1]

    def settings(self, job: Job) -> Any:
        """The layout and the group size."""
        return asdict(job.recipe.torchao)

    def place(self, job: Job, folder: Path) -> Path:
        del job
        return folder

    def write(self, job: Job, rounded: Rounded, path: Path, progress: Progress) -> None:
        write.write_torchao(job, rounded, path, progress)

    def write_entrance(self, path: Path) -> None:
        """Let `SentenceTransformer(path.parent)` open the folder, and a hub's repository so made by its name."""
        write.write_entrance(path)

    def weight_bytes(self, path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*.safetensors"))

    def is_at(self, path: Path) -> bool:
        return path.is_dir() and any(each.name != CODEC for each in path.glob("*.safetensors"))

    def why_not(self, device: str) -> None:
        """None: torch runs it on every device that it has."""

    def open(self, path: Path, device: str) -> Opened:
        return Opened(path, device)

    def load(self, path: Path, device: str) -> "SentenceTransformer":
        from tierexport.formats.torchao.load import load

        return load(path, device)
