"""The weights of a model folder: safetensors only, checked before they are read."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tierexport.base.errors import SourceError
from tierexport.base.records import Source
from tierexport.model.folder import modules, read_object, transformer_folder


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, each opened once to check its header and length.

    Raises SourceError when there are none, only pickles, or one is damaged.
    """
    inner = transformer_folder(path)
    single, index = inner / "model.safetensors", inner / "model.safetensors.index.json"
    if single.is_file():
        found = [single]
    elif index.is_file():
        listed = read_object(index, "").get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(each, str) for each in listed.values()):
            raise SourceError(f"{index}: weight_map has to name a file for each tensor")
        names = sorted(set(listed.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise SourceError(f"{index}: {outside[0]!r} leaves the model's folder")
        found = [inner / name for name in names]
    else:
        raise _no_safetensors(inner)
    found += module_weights(path)
    for file in found:
        _check_header(file)
    return found


def module_weights(path: Path) -> list[Path]:
    """The weight files of the modules that follow the transformer (a Dense head, say). Raises SourceError for pickles."""
    found = []
    for folder in (path / str(module["path"]) for module in modules(path)[1:] if module["path"]):
        files = [*folder.rglob("model.safetensors")]
        if not files and _pickles(folder):
            raise _no_safetensors(folder)
        found += files
    return sorted(found)


def _no_safetensors(path: Path) -> SourceError:
    if pickles := _pickles(path):
        return SourceError(
            f"{path} has its weights pickled ({pickles[0]}), and a pickle can run any code: convert them with "
            "transformers' save_pretrained, or take a revision with model.safetensors"
        )
    return SourceError(f"{path} has no model.safetensors: weights are read from safetensors only")


def _pickles(path: Path) -> list[str]:
    return sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))


def _check_header(file: Path) -> None:
    try:
        with safe_open(file, framework="np"):
            pass
    except PermissionError as error:
        raise SourceError(f"{file} can't be read: {error.strerror}") from None
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file} is damaged or cut short ({error}): fetch it again") from None


def weights(path: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor of a model folder as (name, torch tensor), one at a time."""
    for file in weight_files(path):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a dict
                yield name, opened.get_tensor(name)


def fp32_bytes(path: Path) -> int:
    """Bytes that the floating-point tensors of a model folder take in fp32, by the files' headers."""
    values = 0
    for file in weight_files(path):
        with safe_open(file, framework="np") as opened:
            slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118  # not a dict
            values += sum(math.prod(each.get_shape()) for each in slices if "F" in each.get_dtype())
    return 4 * values


def check_finite(source: Source) -> None:
    """Read every weight once. Raises SourceError naming a tensor that holds NaN or infinity."""
    import torch

    for name, tensor in weights(source.path):
        if not tensor.is_floating_point() and name.endswith(".weight"):
            raise SourceError(f"{source.path}: {name} is {tensor.dtype}: the model is quantized already; take its original")
        bad = int((~torch.isfinite(tensor.float())).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise SourceError(f"{source.path}: {bad} values of {name} are NaN or infinite: the file is damaged")
