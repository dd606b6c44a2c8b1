"""What `quantize` is asked for: a model at a size, and what that means in bytes and for a recipe. Measures nothing."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierexport.base.errors import InputError, PlanError
from tierexport.base.records import Source, Tensor
from tierexport.base.registry import FORMATS
from tierexport.base.sizes import shown_size
from tierexport.base.validation import nearest
from tierexport.formats import format_named
from tierexport.formats.gguf.choices import GgufChoices
from tierexport.formats.gguf.format import Gguf
from tierexport.formats.protocol import Format
from tierexport.model.roles import UNQUANTIZED_ROLE, expand
from tierexport.recipe.choices import BITS
from tierexport.recipe.paths import settle_existing
from tierexport.recipe.schema import Tier
from tierexport.search.study import Study

SMALLEST = "TIER_LOSSLESS"
"""The name of the recipe that no budget is named for."""


@dataclass(frozen=True)
class Request:
    """A model, and how large its GGUF may be: `size` bytes, `bits` per parameter of the whole file, or no more than
    llama-quantize's file of the type `like`. Of the three one is named, or none: then it is the smallest whose retrieval on
    `data` is shown to lose less than `find.LOSS`.

    `max_time`: how long llama.cpp may take with it, as a share of what it takes with a file of Q8_0 on this machine.
    `texts` are calibrated on, `data` are retrieval sets to score; of each the built-in ones, where none are named.
    """

    model: str
    size: int | None = None
    bits: float | None = None
    like: str | None = None
    formats: tuple[str, ...] = ("gguf",)
    texts: str | None = None
    data: tuple[str, ...] = ("builtin",)
    base_model: str | None = None
    max_time: float | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what contradicts itself, or is not known."""
        if sum(each is not None for each in (self.size, self.bits, self.like)) > 1:
            raise InputError("a size, bits and a type to be like are three ways to name one budget: name one of them")
        if self.bits is not None and not 0 < self.bits <= 32:
            raise InputError(f"{self.bits:g} bits per parameter can't be met: name a number from 2 to 32")
        if self.max_time is not None and self.is_open:
            raise InputError("a time goes with a size, bits or a type to be like: name one of them, too")
        if self.like is not None and self.like not in GgufChoices.stock:
            raise InputError(f"{self.like!r} is no type of llama-quantize's{nearest(self.like, GgufChoices.stock)}")
        for name in self.formats:
            if name not in FORMATS:
                raise InputError(f"{name!r} is no format{nearest(name, list(FORMATS))}")
        if Gguf.name not in self.formats:
            raise InputError("a size is that of a GGUF, so gguf has to be among the formats")

    @property
    def is_open(self) -> bool:
        """Whether no budget is named."""
        return self.size is None and self.bits is None and self.like is None

    def budget(self, study: Study) -> int:
        """Bytes of the whole GGUF at most; 0 where none is named. Raises InputError for fewer than it can have."""
        if self.is_open:
            return 0
        least = study.least
        budget = self.size or int((self.bits or 0) * study.parameters / 8) or study.stock_bytes(self.like or "")
        if budget < least:
            bits = f"{8 * least / study.parameters:.2f} bits per parameter"
            raise InputError(
                f"{shown_size(budget)} are too few for {study.source.name}: with every tensor at its smallest type it takes "
                f"{shown_size(least)}, {bits}"
            )
        return budget

    def completed(self, document: Mapping[str, Any], source: Source) -> dict[str, Any]:
        """The document of a recipe that was found with what the request says beside the size."""
        made = {**copy.deepcopy(dict(document)), "formats": list(self.formats), "verify": {"data": list(self.data)}}
        if self.texts:
            made["calibration"] = {"texts": self.texts}
        if self.base_model:
            made["base_model"] = self.base_model
        for name in self.formats:
            if name != Gguf.name:
                _extend(made, format_named(name), source)
        settle_existing(made, Path(), ("calibration.texts", "verify.data"))
        return made


def _extend(document: dict[str, Any], fmt: Format, source: Source) -> None:
    """Give tiers that were found for GGUF a type of another format, and what a GGUF lacks of a model the most precise tier."""
    tensors = [tensor for tensor in fmt.tensors(source) if tensor.role != UNQUANTIZED_ROLE]
    tiers = document["tiers"]
    for name, tier in tiers.items():
        tier[fmt.name] = _type_elsewhere(fmt, Tier(name, tier["bits"]), tensors)
    claimed = {role for rule in document["rules"] for each in rule["roles"] for role in expand(each)}
    if left := sorted({tensor.role for tensor in tensors} - claimed):
        document["rules"].append({"tier": max(tiers, key=lambda name: tiers[name]["bits"]), "roles": left})


def _type_elsewhere(fmt: Format, tier: Tier, tensors: Sequence[Tensor]) -> str:
    """The type of another format with the fewest bytes, and of equal ones the most bits, of those that keep as much as a
    tier's bits and that every tensor can take.
    """
    found: dict[tuple[int, int], str] = {}
    for bits in (each for each in BITS if each >= tier.bits):
        with suppress(PlanError):
            native = {fmt.native_type(tensor, Tier(tier.name, bits))[0] for tensor in tensors}.pop()
            found[sum(fmt.tensor_bytes(tensor, native) for tensor in tensors), -bits] = native
    if not found:
        raise PlanError(f"{fmt.name} has no type of {tier.bits} bits and more that every tensor can take")
    return found[min(found)]


def tag_of(budget: int) -> str:
    """The name of a recipe by its budget, which ends the names of its files: letters, digits and underscores alone, so that
    programs take it for the file's tag.
    """
    if not budget:
        return SMALLEST
    number = f"{budget / 1e9:.3g}GB" if budget >= 999.5e6 else f"{budget / 1e6:.3g}MB"
    return f"TIER_{number.replace('.', '_')}"
