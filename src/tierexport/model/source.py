"""From what the user calls a model to a checked folder of safetensors: opens, never computes.

A model is a folder, `ORG/NAME[@REVISION]` on a hub, `pypi:PACKAGE` (a model folder inside an
installed package), or the name of a file in `models/`, which describes one of these.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tierexport.base.digests import file_digest, value_digest
from tierexport.base.errors import SourceError
from tierexport.base.hub import HUB_ID
from tierexport.base.records import Licence, Source
from tierexport.model.card_head import linked, read_head
from tierexport.model.description import FILE_NAME, Description, describe
from tierexport.model.folder import (
    SentenceSettings,
    is_count,
    modules,
    normalizes,
    read_object,
    sentence_settings,
    similarity_of,
    tokenizer_limit,
    transformer_folder,
    usable_positions,
)
from tierexport.model.location import MODEL_FILES, _locate
from tierexport.model.weights import weight_files

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


POOLINGS = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
"""The poolings of sentence-transformers; two at once are written "cls and mean"."""


_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


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


def _digested(path: Path, found: list[Path]) -> list[str]:
    inside = [path / str(module["path"]) for module in modules(path) if module["path"]]
    globs = [path.glob, *(folder.rglob for folder in inside)]
    small = [file for glob in globs for pattern in MODEL_FILES[:-1] for file in glob(pattern) if file.is_file()]
    return sorted({file.relative_to(path).as_posix() for file in [*small, *found]})
