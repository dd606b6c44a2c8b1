"""What a format is: everything that the rest of tierexport asks of one. docs/extending.md adds a third."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tierexport.artifact.manifest import RecipeEntry
from tierexport.base.listing import ListedFile, Listing
from tierexport.base.records import Encoded, Floats, Imatrix, Source
from tierexport.formats.choices import Choices
from tierexport.formats.header import Room
from tierexport.formats.inspection import Inspection
from tierexport.formats.job import Job, Progress
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.plan import Plan, PlannedFormat
from tierexport.recipe.planned import FormatPlan
from tierexport.recipe.schema import Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Reader(Protocol):
    """An artifact that is open on a device."""

    def encode(self, texts: Sequence[str], prompt: str, limit: int, folder: Path) -> Encoded:
        """Vectors of texts, each prefixed with `prompt` and cut at `limit` tokens; the files lie in `folder`.

        Raises ArtifactError where the artifact can't be opened, or fails on a text.
        """

    def close(self) -> None:
        """Let go of what is open."""


class Format(PlannedFormat, Protocol):
    """A format of artifacts, set up as a recipe says."""

    title: str
    """What progress calls an artifact of it."""

    suffix: str
    """How the names of its weight files end."""

    native_types: tuple[str, ...]
    """The native types that a recipe may name."""

    colour: str
    """The colour of its artifacts in pictures, as matplotlib takes it."""

    writer: tuple[str, ...]
    """Modules whose code decides the bytes of an artifact."""

    reader: tuple[str, ...]
    """Modules whose code decides the vectors that an artifact gives."""

    converted_by_others: bool
    """Whether a foreign converter makes the unquantized artifact, which is therefore checked on probe texts."""

    choices: tuple[Choices, ...]
    """What a search chooses types from, a layout each, that first which opens in most places; none where it can't search."""

    def __init__(self, recipe: Recipe | None = None) -> None: ...

    # --- making one

    def unquantized(self, source: Source) -> Path | None:
        """The model in this format before any rounding, made at first use; None where there is no such file."""

    def calibrated(self, plan: FormatPlan, made: Plan) -> Imatrix:
        """The importance that tensors are rounded by; NO_IMATRIX where none is needed."""

    def targets(self, job: Job) -> list[Target]:
        """The matrices of a plan as rounding layer by layer sees them."""

    def tunable(self, job: Job, parameters: Mapping[str, Floats]) -> list[str]:
        """Which of a running model's parameters the artifact holds unchanged in fp32, by their names."""

    def settings(self, job: Job) -> Any:
        """What else of a job changes the artifact's bytes, JSON-able: a part of its stage's key."""

    def place(self, job: Job, folder: Path) -> Path:
        """Where an artifact lies in the folder of its stage."""

    def write(self, job: Job, rounded: Rounded, path: Path, progress: Progress) -> None:
        """Quantize and write. Raises PlanError when a value does not fit its type, MachineError when the disk is full."""

    def write_entrance(self, path: Path, top: Path, at: str) -> None:
        """Write into the folder `top` what lets others open the artifact from there, below which it lies, or will lie, `at`."""

    def weight_bytes(self, path: Path) -> int:
        """Bytes of an artifact's weight files, headers included."""

    # --- using one

    def is_at(self, path: Path) -> bool:
        """Whether a path is an artifact of this format, by its name and kind alone."""

    def why_not(self, device: str) -> str | None:
        """Why artifacts of this format can't run on a device of this machine, or None when they can."""

    def open(self, path: Path, device: str) -> Reader:
        """Open an artifact as its users do; cheap: what is slow is done when texts are encoded."""

    def load(self, path: Path, device: str) -> "SentenceTransformer":
        """An artifact as a SentenceTransformer. Raises ArtifactError."""

    # --- looking into anybody's

    def together(self, listing: Listing, names: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """The weight files of a listing by the artifact that they belong to, each artifact's in the order of `names`."""

    def inspect(self, listing: Listing, names: Sequence[str], room: Room) -> Inspection:
        """What the weight files of one artifact hold, of which headers are read and no weights.

        Raises ArtifactError for a damaged file or where there is no `room` for what it lists, MachineError from a hub.
        """

    def metadata(self, file: ListedFile) -> Mapping[str, Any]:
        """What a weight file says of itself in words, without its vocabulary. Raises ArtifactError for a damaged file."""

    # --- showing one to people

    def library(self, recipe: RecipeEntry) -> str | None:
        """The library that opens an artifact without tierexport, as hubs name it; None where there is none.

        `recipe` is what a manifest says of the recipe.
        """

    def template(self, part: str) -> str | None:
        """A part of the card as a Jinja template: "card", how an artifact is opened, or "frameworks", how in LangChain and its
        kin.

        None where the format has no such part. The template's values are those of report/card.md.
        """
