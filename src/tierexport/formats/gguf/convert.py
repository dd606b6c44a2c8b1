"""From a model folder to an unquantized GGUF: by llama.cpp's own converter, in a subprocess."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierexport.base import archive
from tierexport.base.digests import file_digest
from tierexport.base.errors import MachineError, PlanError
from tierexport.base.files import check_room, tells_of_full_disk
from tierexport.base.progress import stage
from tierexport.base.records import Source, Tensor
from tierexport.base.shipped import shipped
from tierexport.base.stages import stage_key
from tierexport.formats.gguf.carried import OTHER_FORMAT
from tierexport.model.folder import module_kind, modules, transformer_folder, transformer_settings
from tierexport.model.roles import role_and_layer
from tierexport.model.stages import source_stages

CONVERT_SECONDS = 3600


@dataclass(frozen=True)
class Layout:
    """What the official converter makes of a model: its architecture and its tensors."""

    architecture: str
    tensors: tuple[Tensor, ...]


def has_dense(source: Source) -> bool:
    """Whether the model has a Dense head."""
    return any(module_kind(module) == "Dense" for module in modules(source.path))


def read_layout(source: Source) -> Layout:
    """The tensors that the converter would write, without writing them; remembered per model.

    Raises PlanError when llama.cpp does not know the architecture or refuses the model.
    """
    folder = source_stages(source).run("gguf-layout", _converter_key(), lambda out: _run_converter(source, out, None))
    found = json.loads((folder / "layout.json").read_text())
    return Layout(found["architecture"], tuple(_tensor(entry) for entry in found["tensors"]))


def _tensor(entry: dict[str, Any]) -> Tensor:
    shape = tuple(entry["shape"])
    role, layer = role_and_layer(entry["name"], shape)
    return Tensor(entry["name"], role, layer, shape, tuple(entry["sources"]))


def converted(source: Source) -> Path:
    """The unquantized fp32 GGUF of a model, converted at first use. Raises MachineError where there is no room for it."""

    def convert(out: Path) -> None:
        check_room(out, 4 * sum(tensor.parameters for tensor in read_layout(source).tensors))
        with stage("Converting"):
            _run_converter(source, out, "model.gguf")

    return source_stages(source).run("gguf-f32", _converter_key(), convert) / "model.gguf"


def _converter_key() -> str:
    driver = [file_digest(shipped("third_party") / name) for name in ("convert.py", "vocabulary.py")]
    return stage_key(__name__, archive.pin().sha256, driver)


def _run_converter(source: Source, out: Path, outfile: str | None) -> None:
    settings = transformer_settings(source.path)
    with tempfile.TemporaryDirectory() as scratch:
        request, log = Path(scratch) / "request.json", Path(scratch) / "log"
        job = {
            "converter": str(archive.converter()),
            "model": str(transformer_folder(source.path)),
            "name": source.name,
            "pooling": source.pooling,
            "dense": has_dense(source),
            "vocabulary": not source.sketched,
            "lowercase": bool(settings.get("do_lower_case")),
            "tokenizer_arguments": settings.get("tokenizer_args") or settings.get("processor_kwargs") or {},
            "outfile": str(out / outfile) if outfile else None,
            "layout": str(out / "layout.json"),
        }
        request.write_text(json.dumps(job))
        command = [sys.executable, str(shipped("third_party") / "convert.py"), str(request)]
        with log.open("wb") as output:
            try:
                code = subprocess.run(command, stdout=output, stderr=output, timeout=CONVERT_SECONDS, check=False).returncode
            except subprocess.TimeoutExpired:
                raise MachineError(f"the converter took longer than {CONVERT_SECONDS} s for {source.name}") from None
        if code:
            raise _converter_error(source, log.read_text("utf-8", "replace"), code)


def _converter_error(source: Source, log: str, code: int) -> Exception:
    told = [line for line in log.splitlines() if line.strip() and not line.startswith("Writing:")]
    last = told[-1] if told else f"it ended with code {code}"
    if tells_of_full_disk(log):
        return MachineError(f"no space left while converting {source.name}: free some and run again")
    if code < 0:
        return MachineError(f"the converter was killed by signal {-code} on {source.name}: is there too little memory?")
    if "NotImplementedError" in log:
        return PlanError(f"llama.cpp can't hold {source.name} ({source.architecture}): {last}. {OTHER_FORMAT}")
    return PlanError(f"llama.cpp's converter refuses {source.name} ({source.architecture}): {last}. {OTHER_FORMAT}")


# --- reading back
