"""From what the user calls a model to a checked folder of safetensors: opens, never computes.

A model is a folder, `ORG/NAME[@REVISION]` on a hub, `pypi:PACKAGE` (a model folder inside an
installed package), or the name of a file in `models/`, which describes one of these.
"""

import difflib
import importlib.metadata
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tierexport.cardhead import linked, read_head
from tierexport.errors import MachineError, SourceError
from tierexport.hub import HUB_ID, REPOSITORY, fetch, is_hub_id
from tierexport.model_folder import (
    SentenceSettings,
    is_count,
    is_text,
    modules,
    normalizes,
    read_object,
    sentence_settings,
    similarity_of,
    tokenizer_limit,
    transformer_folder,
    usable_positions,
)
from tierexport.records import Licence, Source
from tierexport.shipped import shipped
from tierexport.workdir import file_digest, value_digest

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Configuration, vocabulary, weights: fetched from a repository and one folder down, and digested, folders of modules whole."""


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


POOLINGS = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
"""The poolings of sentence-transformers; two at once are written "cls and mean"."""


FILE_NAME = r"(?!\.)[\w.-]{1,100}"
"""What the name of a model or a recipe may be: it becomes part of file names."""

_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class Description:
    """A file in `models/`: where a model comes from and what its own files may leave out."""

    source: str
    name: str | None = None
    revision: str | None = None
    base_model: str | None = None
    licence: str | None = None
    languages: Sequence[str] = ()
    pooling: str | None = None
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    map: Mapping[str, Any] = field(default_factory=dict)


def describe(model: str, folder: Path) -> Description:
    """What is known of a model before its files are opened. `folder`: where relative paths start.

    Raises SourceError when `model` is nothing that a source can be.
    """
    if (folder / model).is_dir():
        return Description(source=str((folder / model).resolve()))
    if model.startswith("pypi:") or is_hub_id(model):
        return Description(source=model)
    places = (shipped("models"), Path("models"), folder / "models")
    listed = {path.stem: path for place in places for path in place.glob("*.toml")}
    if model in listed:
        return _read_description(listed[model])
    near = difflib.get_close_matches(model, listed, n=1)
    raise SourceError(
        f"there is no model {model!r}: it is no folder, no ORG/NAME of a hub, no pypi:PACKAGE, and not among "
        f"{', '.join(sorted(listed))}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("source", "name", "revision", "licence", "pooling"), ("a text", is_text)),
    "base_model": ("ORG/NAME of a hub", lambda value: is_text(value) and bool(REPOSITORY.fullmatch(value))),
    "languages": ("a list of texts", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "prompts": ("a table of texts", lambda value: isinstance(value, dict) and all(map(is_text, value.values()))),
    "max_tokens": ("a whole number above zero", is_count),
    **dict.fromkeys(("published", "map"), ("a table", lambda value: isinstance(value, dict))),
}
"""What each key of a description has to be, in words and as a check."""


def _read_description(path: Path) -> Description:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from None
    if "source" not in document:
        raise SourceError(f"{path}: source is missing: a folder, ORG/NAME or pypi:PACKAGE")
    if unknown := set(document) - {each.name for each in fields(Description)}:
        raise SourceError(f"{path}: unknown key {sorted(unknown)[0]!r}")
    for key, value in document.items():
        if not _KINDS[key][1](value):
            raise SourceError(f"{path}: {key} has to be {_KINDS[key][0]}, not {value!r}")
    known = Description(**document)
    beside = path.parent / known.source
    return replace(known, source=str(beside.resolve())) if beside.is_dir() else known


def open_source(model: str, folder: Path | None = None, base_model: str | None = None) -> Source:
    """Find, fetch if need be, and check a model's files; no weight is read. `base_model` is its place on a hub, where named.

    Raises SourceError when there is no such model or its files can't be used, MachineError when a
    hub can't be reached.
    """
    known = describe(model, folder or Path())
    path, revision = _locate(known)
    inner = transformer_folder(path)
    _refuse_adapter(inner)
    config = read_object(inner / "config.json", "every model folder has one")
    _refuse_remote_code(inner, config)
    if not any((inner / name).is_file() for name in TOKENIZER_FILES):
        raise SourceError(f"{inner} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    weights = weight_files(path)
    settings = sentence_settings(path)
    pooling = settings.pooling or known.pooling  # where both say one, the model's own files hold
    if not pooling or not set(pooling.split(" and ")) <= set(POOLINGS):
        raise SourceError(
            f"{model}: pooling is {pooling!r}, which has to be one of {', '.join(POOLINGS)}: "
            "describe the model in models/NAME.toml, with the pooling it was trained with"
        )
    max_tokens, cut = _cut(known.max_tokens or settings.max_tokens or tokenizer_limit(inner, config), config)
    head = read_head(path / "README.md")
    base_model = base_model or known.base_model or (known.source.partition("@")[0] if HUB_ID.fullmatch(known.source) else None)
    licence = Licence((known.licence,)) if known.licence and str(head.licence) != known.licence else head.licence
    languages = tuple(known.languages) or head.languages
    told = known.pooling or known.max_tokens or known.prompts  # which the folder alone does not say
    extra = {"pooling": pooling, "max_tokens": known.max_tokens, "prompts": dict(known.prompts)}
    source = Source(
        spec=known.source if Path(known.source).is_dir() and not told else model,
        name=_checked_name(known.name or _short_name(model.removeprefix("pypi:"), path)),
        path=path,
        revision=revision,
        digest=value_digest([{file: file_digest(path / file) for file in _digested(path, weights)}, extra]),
        architecture=next(iter([*_texts(config.get("architectures")), str(config.get("model_type"))])),
        layers=next((config[key] for key in _LAYER_KEYS if is_count(config.get(key))), 0),
        pooling=pooling,
        max_tokens=max_tokens,
        prompts={**settings.prompts, **known.prompts},
        terms=linked(licence, base_model),
        base_model=base_model,
        languages=languages,
        note=_note(head.problem, bool(licence.identifiers), bool(languages)),
        remarks=tuple(_remarks(known, settings, cut)),
        similarity=similarity_of(path),
        normalizes=normalizes(path),
    )
    if not source.layers:
        raise SourceError(f"{model}: config.json states no whole number of layers ({' or '.join(_LAYER_KEYS)})")
    return source


def _remarks(known: Description, settings: "SentenceSettings", cut: str) -> Iterator[str]:
    """What a user should know of how the model was read."""
    if known.pooling and settings.pooling and known.pooling != settings.pooling:
        yield f"its description says {known.pooling} pooling, its own files {settings.pooling}: the files hold"
    if cut:
        yield cut


def _cut(limit: int | None, config: Mapping[str, Any]) -> tuple[int | None, str]:
    """Where texts are cut, and a remark where the model's own limit is beyond the positions that it has."""
    usable = usable_positions(config)
    if limit is None or usable is None or limit <= usable:
        return limit or usable, ""
    return usable, f"its files cut texts at {limit} tokens, but only {usable} positions can be used: texts are cut at {usable}"


def _short_name(model: str, path: Path) -> str:
    """The last part of what the user named; of a folder its own name."""
    named = Path(model.partition("@")[0]).name
    return path.resolve().name if named in ("", ".", "..") else named


def _checked_name(name: str) -> str:
    """A name that files can bear. Raises SourceError."""
    if not re.fullmatch(FILE_NAME, name):
        raise SourceError(f"the model's name {name!r} can't name files (letters, digits, . _ - only): rename the folder")
    return name


# --- where the files are


def _locate(known: Description) -> tuple[Path, str | None]:
    if known.source.startswith("pypi:"):
        return _installed(known.source.removeprefix("pypi:"))
    if Path(known.source).is_dir():
        return Path(known.source), None
    repository, _, revision = known.source.partition("@")
    return _from_hub(repository, revision or known.revision)


def _installed(package: str) -> tuple[Path, str]:
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise MachineError(f"the model's package {package} is not installed: pip install {package}") from None
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    folders = [file.parent for file in files if file.name == "config.json" and (file.parent / "tokenizer.json").is_file()]
    if len(folders) != 1:
        raise SourceError(f"the package {package} holds {len(folders)} model folders; one is expected")
    return folders[0].resolve(), distribution.version


def _from_hub(repository: str, revision: str | None) -> tuple[Path, str]:
    patterns = [pattern for each in MODEL_FILES for pattern in (each, f"*/{each}")]
    folder = fetch("model", repository, revision, [*patterns, "README.md"], SourceError, ignored=("onnx/*", "openvino/*"))
    return folder, folder.name


# --- what the files say


def _refuse_adapter(path: Path) -> None:
    """A LoRA adapter alone can't be exported: its base model is elsewhere, and not merged with it."""
    if (path / "config.json").is_file() or not (path / "adapter_config.json").is_file():
        return
    base = read_object(path / "adapter_config.json", "").get("base_model_name_or_path")
    raise SourceError(
        f"{path} is an adapter (LoRA) for {base or 'a base model that it does not name'}, without that model: merge the two "
        "(peft's merge_and_unload) and save the result, then name its folder"
    )


def _refuse_remote_code(path: Path, config: dict[str, Any]) -> None:
    if not config.get("auto_map"):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise SourceError(
            f"{path} wants to run code of its own (auto_map in config.json, model_type {config.get('model_type')!r}), "
            "which tierexport does not do: use a revision that the installed transformers knows"
        )


def _note(problem: str | None, licence: bool, languages: bool) -> str | None:
    """What a card whose head can't be read leaves unsaid."""
    unsaid = [what for what, said in (("licence", licence), ("languages", languages)) if not said]
    if not problem or not unsaid:
        return None
    are = "are" if "languages" in unsaid else "is"
    return f"the head of the source's README.md can't be read ({problem}), so {' and '.join(unsaid)} {are} not stated"


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


# --- the weights


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


def check_finite(source: Source) -> None:
    """Read every weight once. Raises SourceError naming a tensor that holds NaN or infinity."""
    import torch

    for name, tensor in weights(source.path):
        if not tensor.is_floating_point() and name.endswith(".weight"):
            raise SourceError(f"{source.path}: {name} is {tensor.dtype}: the model is quantized already; take its original")
        bad = int((~torch.isfinite(tensor.float())).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise SourceError(f"{source.path}: {bad} values of {name} are NaN or infinite: the file is damaged")


def _digested(path: Path, found: list[Path]) -> list[str]:
    inside = [path / str(module["path"]) for module in modules(path) if module["path"]]
    globs = [path.glob, *(folder.rglob for folder in inside)]
    small = [file for glob in globs for pattern in MODEL_FILES[:-1] for file in glob(pattern) if file.is_file()]
    return sorted({file.relative_to(path).as_posix() for file in [*small, *found]})
