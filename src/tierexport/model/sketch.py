"""From a description alone to a model folder without weights: what a plan needs before gigabytes are fetched.

config.json and names of tensors are as transformers would save a model of that configuration. The safetensors files hold every
tensor's name and shape, and in place of its values a hole, which takes no room on a disk.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tierexport.base.errors import SourceError
from tierexport.base.files import write_json, writing
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Source
from tierexport.model.description import Dense, Description, describe
from tierexport.model.encoder import without_memory
from tierexport.model.location import has_come
from tierexport.model.source import open_source, read_source

FP32_BYTES = 4

ALIKE = 0.85
"""From which likeness on, of 1, a key that no configuration lists is taken for a misspelt one."""

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def opened_or_sketched(model: str, folder: Path, base_model: str | None) -> Iterator[Source]:
    """A model's source, or while the context lasts one that was laid out from its description, where none of its weights has
    come to this machine and the description has its configuration. Raises what `open_source` does.
    """
    known = describe(model, folder)
    if not known.config or has_come(known):
        yield open_source(model, folder, base_model)
        return
    with TemporaryDirectory() as scratch:
        parameters = sketch(known, Path(scratch))
        source = read_source(model, known, Path(scratch), known.revision, base_model, sketched=True)
        remark = (
            f"planned from its description alone, for its weights are not on this machine: {parameters:,} parameters, "
            f"{FP32_BYTES * parameters / 1e6:,.0f} MB in fp32"
        )
        yield replace(source, remarks=(remark, *source.remarks))


def sketch(known: Description, folder: Path) -> int:
    """Lay a described model out in a folder; returns how many parameters it has. Raises SourceError for a configuration that
    transformers does not know.
    """
    config, shapes = _configured(known)
    config.save_pretrained(folder)
    _write_hollow(folder / "model.safetensors", shapes)
    heads = {f"{number}_Dense": head for number, head in enumerate(known.dense, 2)}
    if heads:
        _write_modules(folder, known, heads)
    return sum(math.prod(shape) for each in (shapes, *map(_dense_shapes, known.dense)) for shape in each.values())


def _configured(known: Description) -> tuple[Any, Shapes]:
    """Transformers' configuration of a described model, and the shapes of its tensors by the names they are saved under."""
    import_sentence_transformers()
    from transformers import CONFIG_MAPPING
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    stated = dict(known.config)
    kind = stated.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise SourceError(f"{known.source}: config.model_type = {kind!r} is no architecture that transformers has a class for")
    _refuse_misspelt_keys(known, CONFIG_MAPPING[kind], stated)
    try:
        config = CONFIG_MAPPING[kind](**stated)
        model = without_memory(config)
        saved = revert_weight_conversion(model, remove_tied_weights_from_state_dict(model.state_dict(), model))
    except Exception as error:  # a stranger's configuration fails in any way
        raise SourceError(f"{known.source}: transformers can't make a {kind} of the description's [config]: {error}") from error
    config.architectures = [type(model).__name__]
    return config, {name: tuple(tensor.shape) for name, tensor in saved.items()}


def _refuse_misspelt_keys(known: Description, kind: Any, stated: Mapping[str, Any]) -> None:
    """Transformers takes any key, for its models read some that no configuration lists, and for a misspelt one its default."""
    keys = [*kind().to_dict(), *kind.attribute_map]
    for key in stated:
        if key not in keys and (meant := difflib.get_close_matches(key, keys, n=1, cutoff=ALIKE)):
            raise SourceError(f"{known.source}: its description has an unknown key config.{key}; did you mean {meant[0]!r}?")


def _write_modules(folder: Path, known: Description, heads: Mapping[str, Dense]) -> None:
    """modules.json, and what it names: pooling and Dense heads."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **dict.fromkeys(heads, "Dense")}
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": known.pooling})
    for name, head in heads.items():
        write_json(folder / name / "config.json", asdict(head))
        _write_hollow(folder / name / "model.safetensors", _dense_shapes(head))


def _dense_shapes(head: Dense) -> Shapes:
    bias: Shapes = {"linear.bias": (head.out_features,)} if head.bias else {}
    return {"linear.weight": (head.out_features, head.in_features), **bias}


def _write_hollow(path: Path, shapes: Shapes) -> None:
    """A safetensors file of fp32 tensors whose values are a hole, and read as zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + FP32_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    with writing(path), path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
