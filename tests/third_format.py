"""A third format, as small as one can be: a copy of the model's folder with numpy's arrays, fp16 or fp32, for its weights."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tierexport.artifact.manifest import RecipeEntry
from tierexport.artifact.stored import StoredTensor
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.listing import ListedFile, Listing
from tierexport.base.records import NO_IMATRIX, Encoded, Floats, Imatrix, Source, Tensor
from tierexport.formats.choices import Choices
from tierexport.formats.header import Room
from tierexport.formats.inspection import Inspection, whole_bytes
from tierexport.formats.job import Job, Progress
from tierexport.formats.protocol import Format
from tierexport.model.encoder import encode
from tierexport.model.roles import gguf_name, role_and_layer
from tierexport.model.vector_store import VectorStore
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import FormatPlan
from tierexport.recipe.schema import Recipe, Tier

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WEIGHTS = "weights.npz"
CARD = '\n### numpy\n\n```python\nimport tierexport\n\nmodel = tierexport.load("{{ paths.npz }}", device="cpu")\n```\n'


class Npz:
    """Arrays of numpy beside the model's other files."""

    name = "npz"
    title = "the npz folder"
    suffix = ".npz"
    native_types: tuple[str, ...] = ("float16", "float32")
    colour = "#2e9e5b"
    writer: tuple[str, ...] = ("third_format",)
    reader: tuple[str, ...] = ("third_format",)
    converted_by_others = False
    choices: tuple[Choices, ...] = ()

    def __init__(self, recipe: Recipe | None = None) -> None:
        del recipe

    # --- the plan

    def tensors(self, source: Source) -> tuple[Tensor, ...]:
        with safe_open(source.path / "model.safetensors", framework="np") as opened:
            return tuple(
                _tensor(name, tuple(opened.get_slice(name).get_shape()))
                for name in opened.keys()  # noqa: SIM118  # not a dict
            )

    def native_type(self, tensor: Tensor, tier: Tier) -> tuple[str, str]:
        del tensor
        return "float32" if tier.bits == 32 else "float16", ""

    def takes_feedback(self, tensor: Tensor, native: str) -> bool:
        del tensor, native
        return False

    def tensor_bytes(self, tensor: Tensor, native: str) -> int:
        return tensor.parameters * np.dtype(native).itemsize

    # --- making one

    def unquantized(self, source: Source) -> None:
        """None: the source's own weights are read."""

    def calibrated(self, plan: FormatPlan, made: Plan) -> Imatrix:
        del plan, made
        return NO_IMATRIX

    def targets(self, job: Job) -> list[Target]:
        del job
        return []

    def tunable(self, job: Job, parameters: Mapping[str, Floats]) -> list[str]:
        del job, parameters
        return []

    def settings(self, job: Job) -> None:
        """None: the types say all."""

    def place(self, job: Job, folder: Path) -> Path:
        del job
        return folder

    def write(self, job: Job, rounded: Rounded, path: Path, progress: Progress) -> None:
        del rounded
        source = job.source.path
        shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors", "*.md"), dirs_exist_ok=True)
        weights = load_file(source / "model.safetensors")
        arrays: dict[str, Any] = {row.tensor.name: weights[row.tensor.name].astype(row.type) for row in job.plan.rows}
        np.savez(path / WEIGHTS, **arrays)
        progress(job.plan.parameters)

    def write_entrance(self, path: Path, top: Path, at: str) -> None:
        """Nothing."""

    def weight_bytes(self, path: Path) -> int:
        return (path / WEIGHTS).stat().st_size

    # --- using one

    def is_at(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file()

    def why_not(self, device: str) -> None:
        """None: torch runs it."""

    def open(self, path: Path, device: str) -> "NpzReader":
        return NpzReader(path, device)

    def load(self, path: Path, device: str) -> "SentenceTransformer":
        st = import_sentence_transformers()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(shutil.copytree(path, Path(scratch) / "model", ignore=shutil.ignore_patterns(WEIGHTS)))
            arrays = {name: array.astype(np.float32) for name, array in np.load(path / WEIGHTS).items()}
            save_file(arrays, folder / "model.safetensors", {"format": "pt"})
            loaded: SentenceTransformer = st.SentenceTransformer(str(folder), device=device, local_files_only=True)
        return loaded

    # --- looking into anybody's

    def together(self, listing: Listing, names: Sequence[str]) -> list[tuple[str, ...]]:
        del listing
        return [(name,) for name in names]

    def inspect(self, listing: Listing, names: Sequence[str], room: Room) -> Inspection:
        del room
        (name,) = names
        file = listing.files[name]
        with file.open() as opened, np.load(opened) as arrays:
            found = [StoredTensor(_tensor(key, each.shape), str(each.dtype), each.nbytes) for key, each in arrays.items()]
        return Inspection(file.where, self.name, whole_bytes(listing, names), tuple(found))

    def metadata(self, file: ListedFile) -> dict[str, Any]:
        del file
        return {}

    # --- showing one to people

    def library(self, recipe: RecipeEntry) -> None:
        """None: numpy alone runs nothing."""

    def template(self, part: str) -> str | None:
        return CARD if part == "card" else None


class NpzReader:
    """The folder as sentence-transformers runs it."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device

    def encode(self, texts: Sequence[str], prompt: str, limit: int, folder: Path) -> Encoded:
        del limit
        return encode(Npz().load(self.path, self.device), texts, prompt, VectorStore(folder))

    def close(self) -> None:
        """Nothing is kept open."""


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, *role_and_layer(gguf_name(name) or name, shape), shape)


CHECKED: type[Format] = Npz
"""The type checker says here what a format lacks."""
