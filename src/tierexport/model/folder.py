"""What a model folder says of itself: the modules of sentence-transformers, their settings, where texts are cut.

Reads small JSON files, no weight. A folder without modules.json is a transformer alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tierexport.base.errors import SourceError
from tierexport.metrics.similarity import SIMILARITIES

TRANSFORMER_SETTINGS = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""The names under which sentence-transformers has saved its own settings of a transformer, the present one first."""

UNLIMITED = 1_000_000
"""Tokens from which a tokenizer's limit means that it has none: transformers writes 10^30."""

POSITIONS_FROM_PADDING = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "data2vec-text",
    "ibert", "xmod", "luke", "esm",
)  # fmt: skip
"""Values of `model_type` whose positions are counted from the padding token's number + 1: so many rows are never used."""


def modules(path: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, checked to stay inside it; [] for a plain one."""
    if not (path / "modules.json").is_file():
        return []
    listed: list[dict[str, Any]] = _read_json(path / "modules.json", "")
    if not isinstance(listed, list) or not all(isinstance(module, dict) and is_text(module.get("path")) for module in listed):
        raise SourceError(f"{path / 'modules.json'} has to be a list of modules, each with a type and a path")
    for module in listed:
        inside = Path(str(module.get("path", "")))
        if inside.is_absolute() or ".." in inside.parts:
            raise SourceError(f"{path / 'modules.json'}: the path {str(inside)!r} leaves the model's folder")
        if not str(module.get("type", "")).startswith("sentence_transformers."):
            raise SourceError(
                f"{path / 'modules.json'} wants code of its own ({module.get('type')!r}), which tierexport does not run"
            )
    return listed


def module_kind(module: Mapping[str, Any]) -> str:
    """The class of a module without where it is defined."""
    return str(module["type"]).rpartition(".")[2]


def transformer_folder(path: Path) -> Path:
    """Where config.json, tokenizer and weights of the transformer lie: the folder itself, or 0_Transformer in old layouts.

    Raises SourceError where the first module is no transformer.
    """
    listed = modules(path)
    if not listed:
        return path
    kind = module_kind(listed[0])
    if kind != "Transformer":
        raise SourceError(f"{path} begins with a {kind} module, which is no transformer: there is nothing to quantize in tiers")
    return path / str(listed[0]["path"])


def module_settings(path: Path, module: Mapping[str, Any]) -> dict[str, Any]:
    """What the config.json of a module after the transformer says; {} where it has none."""
    file = path / str(module["path"]) / "config.json"
    return read_object(file, "") if module["path"] and file.is_file() else {}


def transformer_settings(path: Path) -> dict[str, Any]:
    """What sentence_bert_config.json, under whichever of its names, says of the transformer; {} where there is none."""
    files = (transformer_folder(path) / name for name in TRANSFORMER_SETTINGS)
    return next((read_object(file, "") for file in files if file.is_file()), {})


@dataclass(frozen=True)
class SentenceSettings:
    """What a sentence-transformers folder states beside the transformer."""

    pooling: str | None = None
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


def sentence_settings(path: Path) -> SentenceSettings:
    """Pooling, token limit and prompts that the folder's files state. Raises SourceError for what makes no sense."""
    settings = SentenceSettings()
    for module in modules(path):
        if module["type"].endswith(".Pooling"):
            settings = replace(settings, pooling=_pooling(read_object(path / module["path"] / "config.json", "pooling")))
    own = path / "config_sentence_transformers.json"
    for file in [*(transformer_folder(path) / name for name in TRANSFORMER_SETTINGS), own]:
        if file.is_file():
            document = read_object(file, "")
            prompts, limit = document.get("prompts") or {}, document.get("max_seq_length")
            default = document.get("default_prompt_name")
            if not isinstance(prompts, dict) or not all(text is None or is_text(text) for text in prompts.values()):
                raise SourceError(f"{file}: prompts has to be a table of texts, not {prompts!r}")
            if limit is not None and not is_count(limit):
                raise SourceError(f"{file}: max_seq_length has to be a whole number above zero, not {limit!r}")
            if default is not None and not is_text(default):
                raise SourceError(f"{file}: default_prompt_name has to be a text, not {default!r}")
            settings = replace(
                settings,
                default_prompt_name=default or settings.default_prompt_name,
                max_tokens=limit or settings.max_tokens,
                prompts={**settings.prompts, **{key: text for key, text in prompts.items() if text}},
            )
    return settings


def _pooling(config: Mapping[str, Any]) -> str | None:
    """The pooling modes that a Pooling module's config.json states, in either of its forms, joined by " and "."""
    mode = config.get("pooling_mode")
    flags = [key for key in config if key.startswith("pooling_mode_")]
    on = [name for key, name in _POOLING_FLAGS.items() if config.get(key) is True]
    modes = (mode if isinstance(mode, list) else [mode]) if mode else on
    return " and ".join(map(str, modes)) or ("mean" if flags else None)


_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The flags of a Pooling module saved before there was "pooling_mode", in the order in which vectors are joined."""


def normalizes(path: Path) -> bool:
    """Whether a model folder puts out vectors of unit length: a plain one is given a Normalize by `encode.open_model`."""
    listed = modules(path)
    return not listed or str(listed[-1]["type"]).endswith(".Normalize")


def similarity_of(path: Path) -> str:
    """By what the model's vectors are compared, by sentence-transformers' name. Raises SourceError for an unknown one."""
    file = path / "config_sentence_transformers.json"
    found = read_object(file, "").get("similarity_fn_name") if file.is_file() else None
    if found is not None and found not in SIMILARITIES:
        raise SourceError(f"{file}: similarity_fn_name has to be one of {', '.join(SIMILARITIES)}, not {found!r}")
    return found or "cosine"


def tokenizer_limit(path: Path, config: Mapping[str, Any]) -> int | None:
    """Tokens that sentence-transformers cuts a text at where only the tokenizer states them."""
    if not (path / "tokenizer_config.json").is_file():
        return None
    limits = [read_object(path / "tokenizer_config.json", "").get("model_max_length"), config.get("max_position_embeddings")]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNLIMITED]
    return min(known, default=None)


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a text may have by the rows of the position table, or None where there is none."""
    rows = config.get("max_position_embeddings")
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        return None
    padding = config.get("pad_token_id")
    skipped = padding + 1 if config.get("model_type") in POSITIONS_FROM_PADDING and isinstance(padding, int) else 0
    return rows - skipped if rows > skipped else None


def read_object(path: Path, why: str) -> dict[str, Any]:
    """A file's JSON object; `why` it should be there. Raises SourceError where it is not, or is something else."""
    found = _read_json(path, why)
    if not isinstance(found, dict):
        raise SourceError(f"{path} has to be a JSON object, not {type(found).__name__}")
    return found


def _read_json(path: Path, why: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing ({why}): is this a Hugging Face model folder?") from None
    except (ValueError, OSError, RecursionError) as error:
        raise SourceError(f"{path} can't be read as JSON: {error}") from None


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above zero."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)
