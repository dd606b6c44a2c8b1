"""A sentence-transformers folder with torchao's weights, as the rest of tierexport sees it.

Three layouts. `portable`: torchao's own intx tensors, one byte per value, which stock transformers
loads and runs everywhere. `packed`: two 4-bit values per byte (`Int4Tensor`), which stock
transformers runs on CUDA with mslk, and `tierexport.load` anywhere. `fast`: the matrices of layers as `Int8Tensor`, which
multiplies integers; stock transformers runs it everywhere, and `tierexport.load` compiles it.

What takes torch is imported where it is asked for: planning by types and inspecting take none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierexport.artifact.folder import CODEC
from tierexport.artifact.manifest import RecipeEntry
from tierexport.base.listing import ListedFile, Listing
from tierexport.base.packaged import packaged_text
from tierexport.base.records import NO_IMATRIX, Floats, Imatrix, Source, Tensor
from tierexport.formats.choices import Choices
from tierexport.formats.header import Room
from tierexport.formats.inspection import Inspection
from tierexport.formats.job import Job, Progress
from tierexport.formats.torchao import types
from tierexport.formats.torchao.choices import TorchaoChoices
from tierexport.formats.torchao.header import read_safetensors_header
from tierexport.formats.torchao.inspect import inspect_safetensors, same_model
from tierexport.formats.torchao.layout import read_tensors
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import FormatPlan
from tierexport.recipe.schema import Recipe, Tier, TorchaoSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tierexport.formats.torchao.reader import Opened


class Torchao:
    """torchao: quantized by torchao, saved and run by sentence-transformers."""

    name = "torchao"
    title = "the torchao folder"
    suffix = ".safetensors"
    native_types: tuple[str, ...] = types.NATIVE_TYPES
    colour = "#e0662b"
    writer: tuple[str, ...] = ("tierexport.formats.torchao.write",)
    reader: tuple[str, ...] = ("tierexport.formats.torchao.reader",)
    converted_by_others = False
    choices: tuple[Choices, ...] = tuple(TorchaoChoices(TorchaoSettings(layout)) for layout in ("portable", "packed"))

    def __init__(self, recipe: Recipe | None = None) -> None:
        self.layout = recipe.torchao if recipe else TorchaoSettings()

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        """Every tensor of the module tree and of the modules after it. Raises SourceError."""
        return read_tensors(source)

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        """The type for a tensor, and a note where it is the recipe's fallback; `types.native_type`."""
        return types.native_type(tensor, tier, self.layout)

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        """Whether error feedback makes its codes; `types.takes_feedback`."""
        return types.takes_feedback(tensor, native)

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
        from tierexport.formats.torchao.write import targets

        return targets(job)

    def tunable(self, job: Job, parameters: Mapping[str, Floats]) -> list[str]:
        """Biases and norms."""
        del job
        return [name for name, values in parameters.items() if values.ndim == 1]

    def settings(self, job: Job) -> Any:
        """The layout and the group size; and what is read to even out inputs, where they are rounded."""
        reads = any(row.type == types.DYNAMIC for row in job.plan.rows)
        return [asdict(job.recipe.torchao), *([job.made.texts.digest, job.recipe.calibration.tokens] if reads else [])]

    def place(self, job: Job, folder: Path) -> Path:
        del job
        return folder

    def write(self, job: Job, rounded: Rounded, path: Path, progress: Progress) -> None:
        from tierexport.formats.torchao.write import write_torchao

        write_torchao(job, rounded, path, progress)

    def write_entrance(self, path: Path, top: Path, at: str) -> None:
        """Let `SentenceTransformer(top)` open the folder, and a hub's repository so made by its name."""
        from tierexport.formats.torchao.write import write_entrance

        write_entrance(path, top, at)

    def weight_bytes(self, path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*.safetensors"))

    def is_at(self, path: Path) -> bool:
        return path.is_dir() and any(each.name != CODEC for each in path.glob("*.safetensors"))

    def why_not(self, device: str) -> None:
        """None: torch runs it on every device that it has."""

    def open(self, path: Path, device: str) -> "Opened":
        from tierexport.formats.torchao.reader import Opened

        return Opened(path, device)

    def load(self, path: Path, device: str) -> "SentenceTransformer":
        from tierexport.formats.torchao.load import load

        return load(path, device)

    def together(self, listing: Listing, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The shards of a model, and the modules after its transformer."""
        return same_model(listing, names)

    def inspect(self, listing: Listing, names: Sequence[str], room: Room) -> Inspection:
        return inspect_safetensors(listing, names, room)

    def metadata(self, file: ListedFile) -> Mapping[str, Any]:
        with file.open() as opened:
            return read_safetensors_header(opened, file.size, file.where).metadata

    def library(self, recipe: RecipeEntry) -> str | None:
        """sentence-transformers, which runs packed weights nowhere but on CUDA."""
        return "sentence-transformers" if recipe.torchao["layout"] != "packed" else None

    def template(self, part: str) -> str | None:
        return packaged_text("tierexport.formats.torchao", f"{part}.md")
