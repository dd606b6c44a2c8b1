"""From what the user calls a model to a checked folder of safetensors: opens, never computes.

A model is a folder, `ORG/NAME[@REVISION]` on a hub, `pypi:PACKAGE` (a model folder inside an
installed package), or the name of a file in `models/`, which describes one of these.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from tierexport.model.location import MODEL_FILES, locate
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
    return read_source(model, known, *locate(known), base_model)


def read_source(
    model: str, known: Description, path: Path, revision: str | None, base_model: str | None, sketched: bool = False
) -> Source:
    """What a folder and its description say of a model: a sketched one has no tokenizer and no weights. Raises SourceError."""
    config = _checked_config(transformer_folder(path))
    if not sketched:
        _check_tokenizer(transformer_folder(path))
    weights = [] if sketched else weight_files(path)
    settings = sentence_settings(path)
    pooling = _pooling(model, known, settings)
    max_tokens, cut = _cut(known.max_tokens or settings.max_tokens or tokenizer_limit(transformer_folder(path), config), config)
    card, prompts = _card(path, known, base_model), {**settings.prompts, **known.prompts}
    return Source(
        spec=_spec(model, known),
        name=_name(model, known, path),
        path=path,
        revision=revision,
        digest=_digest(path, weights, known, pooling),
        architecture=next(iter([*_texts(config.get("architectures")), str(config.get("model_type"))])),
        layers=_layers(model, config),
        pooling=pooling,
        max_tokens=max_tokens,
        prompts=prompts,
        default_prompt=prompts.get(settings.default_prompt_name or "", ""),
        terms=card.terms,
        base_model=card.base_model,
        languages=card.languages,
        note=card.note,
        remarks=tuple(_remarks(known, settings, cut, config)),
        similarity=similarity_of(path),
        normalizes=normalizes(path),
        sketched=sketched,
    )


def _spec(model: str, known: Description) -> str:
    """What opens the model again: its folder, or the user's name for it where a description adds what the folder lacks."""
    told = known.pooling or known.max_tokens or known.prompts
    return known.source if Path(known.source).is_dir() and not told else model


def _name(model: str, known: Description, path: Path) -> str:
    """The description's name, or the last part of what the user named. Raises SourceError for one that can't name files."""
    last = Path(model).name if Path(known.source).is_dir() else Path(model.removeprefix("pypi:").partition("@")[0]).name
    named = last.partition("@")[0]
    name = known.name or (path.resolve().name if named in ("", ".", "..") else named)
    if not re.fullmatch(FILE_NAME, name):
        raise SourceError(f"the model's name {name!r} can't name files (letters, digits, . _ - only): rename the folder")
    return name


def _pooling(model: str, known: Description, settings: SentenceSettings) -> str:
    """The pooling: where files and description both state one, the model's own files hold. Raises SourceError."""
    pooling = settings.pooling or known.pooling
    if not pooling or not set(pooling.split(" and ")) <= set(POOLINGS):
        raise SourceError(
            f"{model}: pooling is {pooling!r}, which has to be one of {', '.join(POOLINGS)}: "
            "describe the model in models/NAME.toml, with the pooling it was trained with"
        )
    return pooling


def _layers(model: str, config: Mapping[str, Any]) -> int:
    found = next((config[key] for key in _LAYER_KEYS if is_count(config.get(key))), None)
    if found is None:
        raise SourceError(f"{model}: config.json states no whole number of layers ({' or '.join(_LAYER_KEYS)})")
    return int(found)


def _remarks(known: Description, settings: SentenceSettings, cut: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What a user should know of how the model was read."""
    if known.pooling and settings.pooling and known.pooling != settings.pooling:
        yield f"its description says {known.pooling} pooling, its own files {settings.pooling}: the files hold"
    if cut:
        yield cut
    if config.get("auto_map"):
        yield (
            "it brings code of its own (auto_map), which is not run: vectors are those of transformers' "
            f"{config.get('model_type')}, which may differ from what its authors publish"
        )


def _cut(limit: int | None, config: Mapping[str, Any]) -> tuple[int | None, str]:
    """Where texts are cut, and a remark where the model's own limit is beyond the positions that it has."""
    usable = usable_positions(config)
    if limit is None or usable is None or limit <= usable:
        return limit or usable, ""
    return usable, f"its files cut texts at {limit} tokens, but only {usable} positions can be used: texts are cut at {usable}"


# --- what the card states


@dataclass(frozen=True)
class _Card:
    """What is known of a model's terms, origin and languages, and a note on what its card leaves unsaid."""

    terms: Licence
    base_model: str | None
    languages: tuple[str, ...]
    note: str | None


def _card(path: Path, known: Description, base_model: str | None) -> _Card:
    """The card's head, with what the description states in place of it."""
    head = read_head(path / "README.md")
    hub = known.source.partition("@")[0] if HUB_ID.fullmatch(known.source) else None
    base_model = base_model or known.base_model or hub
    licence = Licence((known.licence,)) if known.licence and str(head.licence) != known.licence else head.licence
    languages = known.languages or head.languages
    note = _note(head.problem, bool(licence.identifiers), bool(languages))
    return _Card(linked(licence, base_model), base_model, languages, note)


def _note(problem: str | None, licence: bool, languages: bool) -> str | None:
    """What a card whose head can't be read leaves unsaid."""
    unsaid = [what for what, said in (("licence", licence), ("languages", languages)) if not said]
    if not problem or not unsaid:
        return None
    are = "are" if "languages" in unsaid else "is"
    return f"the head of the source's README.md can't be read ({problem}), so {' and '.join(unsaid)} {are} not stated"


# --- what the files say


def _checked_config(path: Path) -> dict[str, Any]:
    """config.json of a transformer's folder that can be run. Raises SourceError for an adapter and for code of its own."""
    _refuse_adapter(path)
    config = read_object(path / "config.json", "every model folder has one")
    _refuse_remote_code(path, config)
    return config


def _check_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise SourceError(f"{path} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")


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
    """Code of a model's own is not run, and what would be lost without it is not loaded."""
    kind = config.get("model_type")
    if kind == "nomic_bert" and config.get("moe_every_n_layers"):
        raise SourceError(f"{path} is a Nomic-BERT with experts (moe_every_n_layers), which the installed transformers has not")
    if not config.get("auto_map"):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    positions = config.get("position_embedding_type", "absolute")
    if kind not in CONFIG_MAPPING_NAMES or (kind == "bert" and positions != "absolute"):
        raise SourceError(
            f"{path} wants to run code of its own (auto_map in config.json, model_type {kind!r}"
            f"{'' if positions == 'absolute' else f', positions by {positions}'}), "
            "which tierexport does not do: use a revision that the installed transformers knows"
        )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


# --- the digest


def _digest(path: Path, weights: Sequence[Path], known: Description, pooling: str) -> str:
    """Over every file that can change a vector, and what the description adds."""
    extra = {"pooling": pooling, "max_tokens": known.max_tokens, "prompts": dict(known.prompts)}
    return value_digest([{file: file_digest(path / file) for file in _digested(path, weights)}, extra])


def _digested(path: Path, weights: Sequence[Path]) -> list[str]:
    """Those files, below the model's folder."""
    inside = [path / str(module["path"]) for module in modules(path) if module["path"]]
    globs = [path.glob, *(folder.rglob for folder in inside)]
    small = [file for glob in globs for pattern in MODEL_FILES[:-1] for file in glob(pattern) if file.is_file()]
    return sorted({file.relative_to(path).as_posix() for file in [*small, *weights]})
