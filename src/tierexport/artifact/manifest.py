"""manifest.json: what was made of what, tensor by tensor, and the digests of the files that were verified.

The one place where a manifest is read and written. Its JSON is these values, field by field.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tierexport.artifact.reading import STRICT, read_object, validated
from tierexport.artifact.verdicts import ProbeVerdict
from tierexport.base.errors import ArtifactError
from tierexport.base.files import write_json
from tierexport.base.records import Licence

MANIFEST = "manifest.json"

VERSION = 1
"""Of the layout below: raised when a key changes its meaning or goes."""


@dataclass(frozen=True)
class ModelEntry:
    """The fp32 model: `spec` is what others can name it by; the rest as `base.records.Source` has it.

    `modules` are the classes of its sentence-transformers modules, `note` is what its users have to be told, `fp32_bytes` what
    its weights take in fp32.
    """

    __pydantic_config__ = STRICT

    spec: str
    name: str
    base_model: str | None
    revision: str | None
    digest: str
    licence: str | None
    licences: tuple[str, ...]
    licence_name: str | None
    licence_link: str | None
    pooling: str
    max_tokens: int | None
    prompts: Mapping[str, str]
    languages: tuple[str, ...]
    similarity: str
    note: str | None
    modules: tuple[str, ...]
    fp32_bytes: int | None = None

    @property
    def terms(self) -> Licence:
        """What it may be used under."""
        return Licence(self.licences, self.licence_name, self.licence_link)


@dataclass(frozen=True)
class CalibrationEntry:
    """The texts that importance was measured on: the name of the set, and how many there were."""

    __pydantic_config__ = STRICT

    dataset: str
    texts: int


@dataclass(frozen=True)
class RecipeEntry:
    """The recipe. `settings` of formats are under the formats' names; `rounding_texts` names the texts of error feedback."""

    __pydantic_config__ = STRICT

    name: str
    description: str
    rounding: str
    torchao: Mapping[str, Any]
    calibration: CalibrationEntry | None
    rounding_texts: str | None


@dataclass(frozen=True)
class ConversionEntry:
    """The check of the unquantized artifact on probe texts: those that failed, and those that stop nothing, in full."""

    __pydantic_config__ = STRICT

    passed: bool
    probes: int
    least_cosine: float
    cos_min: float
    failed: tuple[ProbeVerdict, ...]
    limits: tuple[ProbeVerdict, ...]


@dataclass(frozen=True)
class TextsEntry:
    """A file or folder of texts of this machine that the recipe names under `key`, by its name and digest."""

    __pydantic_config__ = STRICT

    key: str
    name: str
    digest: str


@dataclass(frozen=True)
class VectorsEntry:
    """How vectors are stored: the codec's file, its name and its settings. `bytes` are those of one vector; `kept`: how many of
    the first dimensions are coded, all where a manifest doesn't say.
    """

    __pydantic_config__ = STRICT

    path: str
    stored: str
    level: str
    dimensions: int
    width: int
    bytes: int
    per_vector: bool
    rotated: bool
    asymmetric: bool
    similarity: str
    kept: int | None = None


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as it was planned and carried out; `shape` in torch's order."""

    __pydantic_config__ = STRICT

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    tier: str
    type: str
    bytes: int
    rounding: str
    note: str


@dataclass(frozen=True)
class ArtifactEntry:
    """An artifact: `path` in the folder, `bytes` of its weight files, bits per parameter of tiers, tensors and files."""

    __pydantic_config__ = STRICT

    format: str
    parameters: int
    tensor_bytes: int
    nominal_bits: float
    tensor_bits: float
    tensors: tuple[TensorEntry, ...]
    path: str
    bytes: int
    stored_bits: float


@dataclass(frozen=True)
class Manifest:
    """What a folder holds. `verified`: whether its verification passed; `files`: SHA-256 of each file that it was about."""

    __pydantic_config__ = STRICT

    version: int
    model: ModelEntry
    recipe: RecipeEntry
    conversion: ConversionEntry | None
    texts: tuple[TextsEntry, ...]
    vectors: VectorsEntry | None
    tools: Mapping[str, str]
    artifacts: tuple[ArtifactEntry, ...]
    verified: bool = False
    files: Mapping[str, str] = field(default_factory=dict)

    def proven(self, verified: bool, files: Mapping[str, str]) -> "Manifest":
        """The same once its files have been verified."""
        return replace(self, verified=verified, files=dict(files))

    def as_json(self) -> dict[str, Any]:
        """As manifest.json has it."""
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Manifest":
        """What `as_json` was made of. Raises ValueError for anything else, saying what is wrong."""
        return validated(_MANIFEST, found)


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder that tierexport built. Raises ArtifactError when there is none that this version reads."""
    path = folder / MANIFEST
    found = read_object(path)
    if "artifacts" in found and found.get("version") != VERSION:
        made = f"version {found['version']!r}" if "version" in found else "an earlier tierexport"
        raise ArtifactError(f"{path} is of {made}, and version {VERSION} is read: build it again")
    try:
        manifest = Manifest.from_json(found)
    except ValueError as error:
        raise ArtifactError(f"{path} is not a manifest that tierexport wrote ({error}): build it again") from None
    for each in manifest.artifacts:
        if not (folder / each.path).resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{path} names {each.path!r}, which lies outside the folder")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it whole or not at all. Raises MachineError when the folder can't be written."""
    write_json(folder / MANIFEST, manifest.as_json())
