"""What a format is: everything that the rest of tierexport asks of one. docs/extending.md adds a third."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tierexport.base.records import NO_IMATRIX, Encoded, Floats, FormatPlan, Imatrix, Recipe, Source
from tierexport.quantize.targets import Rounded, Target
from tierexport.recipe.plan import Plan, PlannedFormat

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Progress = Callable[[int], None]
"""A progress callback: called with the number of parameters (or texts, or steps) done since the last call."""


@dataclass(frozen=True)
class Job:
    """What one artifact is written from: its part of a plan, the whole plan, and what calibration found."""

    plan: FormatPlan
    made: Plan
    imatrix: Imatrix = NO_IMATRIX

    @property
    def recipe(self) -> Recipe:
        return self.made.recipe

    @property
    def source(self) -> Source:
        return self.made.source


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

    writer: tuple[str, ...]
    """Modules whose code decides the bytes of an artifact."""

    reader: tuple[str, ...]
    """Modules whose code decides the vectors that an artifact gives."""

    converted_by_others: bool
    """Whether a foreign converter makes the unquantized artifact, which is therefore checked on probe texts."""

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

    def write_entrance(self, path: Path) -> None:
        """Write into the artifact folder what lets others open the artifact from there."""

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
