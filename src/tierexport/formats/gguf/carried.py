"""What of a sentence-transformers model a GGUF can carry: its modules and their settings, one by one.

docs/gguf.md has the same as a table. What changes vectors and has no counterpart in the file is refused by name, before
anything is converted; the check of the conversion (`verify.conversion`) then looks at what the file really does.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tierexport.base.errors import PlanError
from tierexport.base.records import Source
from tierexport.model.folder import module_kind, module_settings, modules, read_object, transformer_folder, transformer_settings

POOLED_BY_LLAMA_CPP = ("mean", "cls", "lasttoken")
"""The poolings that llama.cpp shares with sentence-transformers."""

OTHER_FORMAT = "torchao is still possible: --set 'formats=[\"torchao\"]'"

GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
"""Names of the activation that llama.cpp's graph of BERT has; its approximations differ from it by 1e-4 at most."""

GELU_ALONE = ("bert", "ernie", "electra", "distilbert", "roberta", "xlm-roberta", "camembert", "jina_embeddings_v3")
"""Values of `model_type` that run in that graph."""

OTHER_LAYERS = {
    "mpnet": "an MPNet, whose attention adds a bias by distance",
    "deberta": "a DeBERTa, whose attention has positions apart from contents",
    "deberta-v2": "a DeBERTa, whose attention has positions apart from contents",
    "albert": "an ALBERT, whose layers share one set of weights",
    "gte": "a GTE, whose layers have rotary positions and GELU gates",
}
"""What no graph of llama.cpp computes, by `model_type`."""

T5_ACTIVATIONS = ("relu", "gated-gelu")

T5_DISTANCE = 128
"""The distance from which llama.cpp's T5 takes all tokens to be equally far."""

DEFAULT_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
"""Which of a transformer's outputs sentence-transformers pools, unless modality_config says another."""


def refuse_what_is_lost(source: Source) -> None:
    """Raises PlanError for the first module or setting that changes vectors and that a GGUF can't hold."""
    for lost in _lost(source):
        raise PlanError(f"{source.name} {lost}. {OTHER_FORMAT}")


def _lost(source: Source) -> Iterator[str]:
    yield from _lost_of_transformer(source)
    listed = modules(source.path)[1:]
    kinds = [module_kind(module) for module in listed]
    for kind, module in zip(kinds, listed, strict=True):
        settings = module_settings(source.path, module)
        yield from _MODULES[kind](source, settings) if kind in _MODULES else [f"has a {kind} module, which a GGUF can't hold"]
    if "Normalize" in kinds[:-1]:
        yield "normalizes vectors before its last module, and llama.cpp only after it"
    if source.pooling not in POOLED_BY_LLAMA_CPP:
        yield f"pools by {source.pooling}, and llama.cpp only by {', '.join(POOLED_BY_LLAMA_CPP)}"
    if kept := _read(source.path / "config_sentence_transformers.json").get("truncate_dim"):
        yield f"keeps the first {kept} dimensions of its vectors (truncate_dim), and llama.cpp puts out all"


def _lost_of_transformer(source: Source) -> Iterator[str]:
    folder, settings = transformer_folder(source.path), transformer_settings(source.path)
    yield from _lost_of_layers(source, _read(folder / "config.json"))
    yield from _lost_of_tokenizer(folder)
    if settings.get("do_lower_case") and _tokenizer_kind(folder) not in ("WordPiece", None):
        yield "has its texts lower-cased before they are tokenized (do_lower_case), which llama.cpp does for WordPiece alone"
    output = (settings.get("modality_config") or {}).get("text", DEFAULT_OUTPUT)
    if output != DEFAULT_OUTPUT:
        yield f"pools {output.get('method_output_name')!r} of the transformer (modality_config), and llama.cpp the last layer"
    changed = {"processing_kwargs", "query_length", "document_length", "query_expansion"}
    if found := sorted(name for name in changed if settings.get(name)):
        yield f"has {found[0]} in sentence_bert_config.json, which changes how texts are tokenized"


def _lost_of_layers(source: Source, config: Mapping[str, Any]) -> Iterator[str]:
    if (kind := str(config.get("model_type"))) in OTHER_LAYERS:
        yield f"is {OTHER_LAYERS[kind]}, and llama.cpp has no such layers"
    yield from _lost_of_other_kin(source, config)
    if config.get("model_type") in GELU_ALONE:
        activation = config.get("hidden_act", config.get("activation", "gelu"))
        if activation not in GELU:
            yield f"has the activation {activation!r} in its layers, and llama.cpp's {source.architecture} gelu alone"
        if config.get("is_decoder"):
            yield "is a BERT run as a decoder (is_decoder in config.json), which llama.cpp runs in both directions"
    if config.get("model_type") == "modernbert":
        if config.get("hidden_activation", "gelu") not in (*GELU, "silu"):
            yield f"has the activation {config['hidden_activation']!r}, and llama.cpp's ModernBERT gelu and silu"
        if any(config.get(name) for name in ("attention_bias", "mlp_bias", "norm_bias")):
            yield "is a ModernBERT with biases in its layers, and llama.cpp's has none"


def _lost_of_other_kin(source: Source, config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("model_type")
    if kind == "nomic_bert" and config.get("hidden_act", "silu") != "silu":
        yield f"has the activation {config['hidden_act']!r} in its layers, and llama.cpp's Nomic-BERT silu alone"
    if kind == "t5" and config.get("feed_forward_proj", "relu") not in T5_ACTIVATIONS:
        yield f"has the activation {config['feed_forward_proj']!r}, and llama.cpp's T5 {' and '.join(T5_ACTIVATIONS)}"
    if kind == "t5" and config.get("relative_attention_max_distance", T5_DISTANCE) != T5_DISTANCE:
        yield f"tells tokens apart that are over {T5_DISTANCE} apart (relative_attention_max_distance), and llama.cpp not"
    window = config.get("sliding_window")
    if kind == "mistral" and window and (source.max_tokens or window + 1) > window:
        yield f"sees {window:,} tokens back (sliding_window), and llama.cpp all: cut texts there (max_seq_length)"


def _lost_of_tokenizer(folder: Path) -> Iterator[str]:
    settings, tokenizer = (_read(folder / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    if settings.get("tokenizer_class") == "BertJapaneseTokenizer":
        yield "cuts words by a Japanese tokenizer (BertJapaneseTokenizer), and llama.cpp at blanks and punctuation alone"
    if settings.get("truncation_side") == "left":
        yield "cuts long texts at their beginning (truncation_side in tokenizer_config.json), and llama.cpp's users at the end"
    if (tokenizer.get("normalizer") or {}).get("handle_chinese_chars") is False:
        yield "leaves Chinese characters together (handle_chinese_chars in tokenizer.json), and llama.cpp takes them apart"
    if tokenizer and _tokenizer_kind(folder) == "WordPiece":
        yield from _lost_of_template(tokenizer.get("post_processor") or {"type": "TemplateProcessing"})


def _lost_of_template(template: Mapping[str, Any]) -> Iterator[str]:
    """A WordPiece vocabulary in llama.cpp has one token at each end of a text, always."""
    ends = [each.get("SpecialToken", {}).get("id", "the text") for each in template.get("single", ())]
    if template["type"] == "TemplateProcessing" and (len(ends) != 3 or ends[1] != "the text"):
        yield f"tokenizes a text as {' '.join(ends) or 'it is'} (post_processor), and llama.cpp has a token at each end"


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    return read_object(file, "") if file.is_file() else {}


def _lost_of_pooling(source: Source, settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("include_prompt") is False and any(source.prompts.values()):
        yield "leaves its prompts out of pooling (include_prompt), and llama.cpp pools all tokens"


def _lost_of_dense(source: Source, settings: Mapping[str, Any]) -> Iterator[str]:
    del source
    if settings.get("bias", True):
        yield "has a Dense head with a bias, and a GGUF holds its matrix alone"
    if not str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).endswith(".Identity"):
        yield f"has a Dense head with an activation ({settings.get('activation_function', 'Tanh')}), and llama.cpp applies none"
    if settings.get("use_residual"):
        yield "has a Dense head with a residual connection (use_residual), and llama.cpp's has none"
    if settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        yield f"has a Dense head on {settings['module_input_name']}, and llama.cpp's is on the pooled vector"


def _lost_of_normalize(source: Source, settings: Mapping[str, Any]) -> Iterator[str]:
    del source
    if settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        yield f"normalizes {settings['module_input_name']}, and llama.cpp the pooled vector"


_MODULES: Mapping[str, Callable[[Source, Mapping[str, Any]], Iterator[str]]] = {
    "Pooling": _lost_of_pooling,
    "Dense": _lost_of_dense,
    "Normalize": _lost_of_normalize,
    "Dropout": lambda *_: iter(()),  # which does nothing but in training
}


def _tokenizer_kind(folder: Path) -> str | None:
    """The kind of tokenizer, or None where it has only the files of an older one (of BERT: vocab.txt)."""
    tokenizer = _read(folder / "tokenizer.json")
    return str(tokenizer["model"].get("type")) if tokenizer else None


def token_rows(source: Source) -> tuple[int, int]:
    """How many tokens the tokenizer has (its highest number and one), and how many rows config.json gives the table.

    Zeros where the files don't say.
    """
    folder = transformer_folder(source.path)
    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer.json")
    if not tokenizer:
        return 0, 0
    vocabulary = tokenizer["model"]["vocab"]
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [int(each["id"]) for each in tokenizer.get("added_tokens", ())]
    return max([*numbers, *added], default=-1) + 1, int(config.get("vocab_size") or 0)


def refuse_more_tokens_than_rows(source: Source) -> None:
    """Raises PlanError where the tokenizer has tokens that the table has no row for."""
    tokens, rows = token_rows(source)
    if tokens > rows > 0:
        raise PlanError(
            f"{source.name}: its tokenizer has {tokens:,} tokens, but its embedding table {rows:,} rows, so no model can take "
            f"a text with the last {tokens - rows:,}, and llama.cpp not the file: resize the table "
            f"(resize_token_embeddings) and save the model, or remove the tokens. {OTHER_FORMAT}"
        )
