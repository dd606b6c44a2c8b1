"""llama.cpp's file format, as the rest of tierexport sees it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierexport.artifact.manifest import RecipeEntry
from tierexport.base.digests import file_digest
from tierexport.base.errors import PlanError
from tierexport.base.listing import ListedFile, Listing
from tierexport.base.packaged import packaged_text
from tierexport.base.records import Floats, Imatrix, Source, Tensor
from tierexport.formats.choices import Choices
from tierexport.formats.gguf import calibrate, types, write
from tierexport.formats.gguf.carried import OTHER_FORMAT, refuse_more_tokens_than_rows, refuse_what_is_lost
from tierexport.formats.gguf.choices import GgufChoices
from tierexport.formats.gguf.convert import converted, has_dense, read_layout
from tierexport.formats.gguf.header import read_gguf_header
from tierexport.formats.gguf.inspect import inspect_gguf, split_parts
from tierexport.formats.gguf.worker_client import Worker
from tierexport.formats.header import Room
from tierexport.formats.inspection import Inspection
from tierexport.formats.job import Job, Progress
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import FormatPlan
from tierexport.recipe.schema import Recipe, Tier

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NO_CUDA = 'llama-cpp-python was built without CUDA: CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall it'


class Gguf:
    """GGUF: converted by llama.cpp's own converter, rounded on ggml's grids, run by llama.cpp."""

    name = "gguf"
    title = "the GGUF"
    suffix = ".gguf"
    native_types: tuple[str, ...] = types.WRITABLE
    colour = "#2b7de0"
    writer: tuple[str, ...] = ("tierexport.formats.gguf.write",)
    reader: tuple[str, ...] = ("tierexport.formats.gguf.worker", "tierexport.formats.gguf.worker_client")
    converted_by_others = True
    choices: tuple[Choices, ...] = (GgufChoices(),)

    def __init__(self, recipe: Recipe | None = None) -> None:
        del recipe  # a GGUF has no settings of its own

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        """What the converter would write. Raises PlanError when llama.cpp can't hold the model."""
        refuse_what_is_lost(source)
        refuse_more_tokens_than_rows(source)
        layout = read_layout(source)
        if has_dense(source) and not any(tensor.name.startswith("dense_") for tensor in layout.tensors):
            raise PlanError(
                f"{source.name} has a Dense head after pooling, which llama.cpp drops for {layout.architecture}: "
                "the GGUF's vectors would be wrong. " + OTHER_FORMAT
            )
        return layout.tensors

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        """The type for a tensor, and a note where it is the recipe's fallback; `types.native_type`."""
        return types.native_type(tensor, tier)

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        """Whether error feedback makes its codes; `types.takes_feedback`."""
        return types.takes_feedback(tensor, native)

    def tensor_bytes(self, tensor: Tensor, native: str) -> int:
        """Rows times bytes per row."""
        return types.tensor_bytes(tensor, native)

    def unquantized(self, source: Source) -> Path:
        """The fp32 GGUF that llama.cpp's converter makes."""
        return converted(source)

    def calibrated(self, plan: FormatPlan, made: Plan) -> Imatrix:
        """The imatrix that the recipe names, or one measured on its calibration texts."""
        return calibrate.importance(plan, made)

    def targets(self, job: Job) -> list[Target]:
        return write.targets(job)

    def tunable(self, job: Job, parameters: Mapping[str, Floats]) -> list[str]:
        return write.tunable(job, parameters)

    def settings(self, job: Job) -> Any:
        """The imatrix, by its file."""
        return job.imatrix.path and file_digest(job.imatrix.path)

    def place(self, job: Job, folder: Path) -> Path:
        return folder / f"{job.source.name}-{job.recipe.name}.gguf"

    def write(self, job: Job, rounded: Rounded, path: Path, progress: Progress) -> None:
        write.write_gguf(job, rounded, path, progress)

    def write_entrance(self, path: Path, top: Path, at: str) -> None:
        """Nothing: a GGUF is named by its path."""

    def weight_bytes(self, path: Path) -> int:
        return path.stat().st_size

    def is_at(self, path: Path) -> bool:
        """Any file: what it really is, its header says."""
        return path.is_file()

    def why_not(self, device: str) -> str | None:
        import llama_cpp

        return NO_CUDA if device == "cuda" and not llama_cpp.llama_supports_gpu_offload() else None

    def open(self, path: Path, device: str) -> Worker:
        return Worker(path, gpu=device == "cuda")

    def load(self, path: Path, device: str) -> "SentenceTransformer":
        from tierexport.formats.gguf.load import load

        return load(path, device)

    def together(self, listing: Listing, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The parts of a split GGUF."""
        del listing  # names say it
        return split_parts(names)

    def inspect(self, listing: Listing, names: Sequence[str], room: Room) -> Inspection:
        return inspect_gguf(listing, names, room)

    def metadata(self, file: ListedFile) -> Mapping[str, Any]:
        """The file's keys without those of the tokenizer."""
        with file.open() as opened:
            found = read_gguf_header(opened, file.size, file.where).metadata
        return {key: value for key, value in found.items() if not key.startswith("tokenizer.")}

    def library(self, recipe: RecipeEntry) -> str:
        del recipe  # llama.cpp opens every GGUF
        return "llama.cpp"

    def template(self, part: str) -> str | None:
        return packaged_text("tierexport.formats.gguf", f"{part}.md")
