"""Export text-embedding models to GGUF and torchao in tiers, and prove what they are worth.

The functions here are the commands of the same names: they take the same values, and raise the same errors (`InputError` where
something that was given is wrong, `MachineError` where this machine lacks something; both are `TierexportError`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tierexport.publish
import tierexport.quantize
import tierexport.verify  # noqa: F401  # a package takes its name here when it is loaded, so before functions have that name
from tierexport.base.errors import InputError, MachineError, TierexportError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tierexport.artifact.verdicts import Verification
    from tierexport.formats.inspection import Inspection
    from tierexport.pipeline import Build
    from tierexport.publish.publication import Publication
    from tierexport.quantizing import Quantized

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "MachineError",
    "TierexportError",
    "build",
    "inspect",
    "load",
    "publish",
    "quantize",
    "verify",
]


def quantize(
    model: "str | Path | SentenceTransformer",
    size: str | int | None = None,
    *,
    bits: float | None = None,
    like: str | None = None,
    max_time: float | None = None,
    formats: Sequence[str] = ("gguf",),
    texts: str | Path | None = None,
    data: Sequence[str | Path] = ("builtin",),
    name: str | None = None,
    base_model: str | None = None,
    out: str | Path | None = None,
    push: str | None = None,
    create_pr: bool = False,
) -> "Quantized":
    """Make a model small and prove what it is worth: search for the best types, build, verify and, with `push`, publish.

    `model`: a folder, `ORG/NAME` of a hub, `pypi:PACKAGE`, a name in `models/`, or a `SentenceTransformer` in memory, which
    is saved in the cache and called `name`. The GGUF takes no more than `size` ("16MB", or bytes), `bits` per parameter, or
    llama-quantize's file of the type `like` ("Q4_K_M"); without any of them it is the smallest whose retrieval on `data`
    is shown to lose less than 0.005 of NDCG@10. `max_time` is how long llama.cpp may take with it on this machine, as a
    share of what it takes with a file of Q8_0. `texts` are calibrated on, `data` scored; `base_model` is what a model in a
    folder or in memory was made from. The artifact folder is `out`, or artifacts/MODEL-TIER_SIZE. It is published only if
    all gates hold.
    """
    from tierexport import quantizing
    from tierexport.base.sizes import parse_size
    from tierexport.model.given import kept
    from tierexport.search.request import Request

    named = str(model) if isinstance(model, str | Path) else str(kept(model, name or "model"))
    asked = Request(
        named,
        parse_size(size) if isinstance(size, str) else size,
        bits,
        like,
        tuple(formats),
        str(texts) if texts else None,
        tuple(map(str, data)),
        base_model,
        max_time,
    )
    (made,), _ = quantizing.quantize([asked], Path(out) if out else None, push, create_pr)
    return made


def build(
    recipe: str | Path, out: str | Path | None = None, *, overrides: Sequence[str] = (), despite: Sequence[str] = ()
) -> "Build":
    """Plan, check the conversion, calibrate, export and verify a recipe: a path, or the name of a shipped one.

    `overrides` are what `--set` takes ("tiers.middle.bits=8"). The artifact folder is `out`, or artifacts/MODEL-RECIPE. Of what
    is returned, `verification.passed` says whether the artifacts hold all gates.
    """
    from tierexport import pipeline

    return pipeline.build(Path(recipe), Path(out) if out else None, overrides, despite)


def verify(
    target: str | Path,
    model: str | Path | None = None,
    *,
    data: Sequence[str | Path] = (),
    sts: str | Path | None = None,
    devices: Sequence[str] = ("cpu", "cuda"),
    codec: str | Path | None = None,
) -> "Verification":
    """Compare the artifacts at a path with the fp32 model: fidelity, retrieval, gates.

    Of a folder that `build` made, everything else is known; for anybody's GGUF or torchao folder `model` names the fp32 model.
    `data` are retrieval sets, `sts` a file of sentence pairs.
    """
    from tierexport import pipeline
    from tierexport.recipe.schema import VerifySettings

    settings = VerifySettings(tuple(map(str, data)), str(sts) if sts else None)
    return pipeline.verify_again(Path(target), str(model) if model else None, settings, devices, Path(codec) if codec else None)


def inspect(target: str | Path) -> "tuple[Inspection, ...]":
    """What a GGUF file, safetensors, an artifact folder or a hub's `ORG/NAME[@REVISION][:FILE]` really holds.

    Reads headers, no weights; of a hub's files it fetches nothing else.
    """
    from tierexport.formats.inspect import inspect as look

    return look(target)


def publish(
    folders: str | Path | Sequence[str | Path],
    to: str,
    *,
    private: bool = False,
    revision: str | None = None,
    despite: Sequence[str] = (),
    dry_run: bool = False,
    create_pr: bool = False,
) -> "Publication":
    """Upload a verified artifact folder, or several sizes of one model, in one commit.

    `to` is "hf:ORG/NAME", "modelscope:ORG/NAME" or "dir:PATH". `despite` names objections to overrule. With `create_pr` it
    becomes a pull request on a Hugging Face hub.
    """
    from tierexport.publish import several

    listed = [folders] if isinstance(folders, str | Path) else folders
    return several.publish([Path(each) for each in listed], to, private, revision, despite, dry_run, create_pr)


def load(path: str | Path, device: str = "cpu") -> "SentenceTransformer":
    """Open a GGUF or a torchao folder as a `SentenceTransformer`: for `encode`, evaluators, mteb, LangChain.

    A GGUF runs in llama.cpp inside this process, on a GPU where `device` is "cuda" and llama.cpp was built for it. A
    packed torchao folder runs through its 4-bit kernels where this machine has them, and through dequantized weights
    elsewhere. Raises `ArtifactError` when there is no such artifact, or it can't be loaded.
    """
    from tierexport.formats.loading import load as load_artifact

    return load_artifact(str(path), device)
