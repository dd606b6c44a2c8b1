"""Vocabularies for the converter, written from the tokenizer that the model really runs: its tokenizer.json.

llama.cpp's converter chooses a vocabulary by the model's class, knows a pre-tokenizer by the hash of what it makes of one
text, and reads sentencepiece's own file where there is one. Models are published whose tokenizer is of another kind than
their class suggests, whose vocabulary is their own, or which had tokens added. What llama.cpp runs is decided by the kind
of tokenizer alone, so that is what is looked at here: `model.type` in tokenizer.json.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

KNOWN_WORDPIECE = "bert-bge"
"""A pre-tokenizer's name for a WordPiece vocabulary; llama.cpp reads none for that kind."""

BYTE_LEVEL = "roberta-bpe"
"""The name of GPT-2's pre-tokenizer with a separator at the end, as RoBERTa has it."""

QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS = {
    (QWEN_WORDS, False): "qwen2",
    (QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), False): "smaug-bpe",
    (QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), True): "llama-bpe",
}
"""llama.cpp's names of what cuts words before byte pairs are merged (llama-vocab.cpp), by the pattern in tokenizer.json and by
whether a word that is a token is left whole (`ignore_merges`): the two patterns that most decoders have, Qwen's and Llama 3's.
"""

ADDED_SCORE = 0.0
FILLER_SCORE = -10000.0


def with_vocabulary(model_class: type[Any], tokenizer: Mapping[str, Any], lowercase: bool) -> type[Any]:
    """An encoder class of the converter, made to write the vocabulary of this tokenizer.json.

    `lowercase`: sentence-transformers lower-cases texts before the tokenizer does anything.
    """
    kind = tokenizer["model"].get("type") or ("WordPiece" if "max_input_chars_per_word" in tokenizer["model"] else "BPE")
    if kind == "WordPiece":
        return _wordpiece(model_class, tokenizer, lowercase)
    if kind == "Unigram":
        return _unigram(model_class, tokenizer)
    return _byte_level(model_class) if _is_byte_level(tokenizer) else model_class


def _wordpiece(model_class: type[Any], tokenizer: Mapping[str, Any], lowercase: bool) -> type[Any]:
    from conversion.bert import BertModel
    from gguf import TokenType

    class WordPiece(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:  # noqa: ARG002  # the converter's signature
            return KNOWN_WORDPIECE

        def set_vocab(self) -> None:
            BertModel.set_vocab(self)
            values = self.gguf_writer.kv_data[0]
            tokens, types = (values[f"tokenizer.ggml.{name}"].value for name in ("tokens", "token_type"))
            find_in_texts(self.gguf_writer, tokenizer, types)
            for row, kind in enumerate(types):
                if kind == TokenType.USER_DEFINED:  # matched in the raw text, not at the beginning of a word
                    tokens[row] = tokens[row].removeprefix("\u2581")
            lower, strip = _normalizer_flags(tokenizer.get("normalizer"))
            set_value(self.gguf_writer, "tokenizer.ggml.normalizer.lowercase", lower or lowercase)
            if strip != (lower or lowercase):
                set_value(self.gguf_writer, "tokenizer.ggml.normalizer.strip_accents", strip)

    return WordPiece


def _normalizer_flags(normalizer: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Whether a normalizer lower-cases, and whether it strips accents."""
    lower = strip = False
    for each in _flattened(normalizer, "normalizers"):
        if each["type"] == "BertNormalizer":
            lower |= bool(each.get("lowercase"))
            # where it says nothing, accents go with the capitals (tokenizers, BertNormalizer)
            strip |= bool(each.get("lowercase") if each.get("strip_accents") is None else each["strip_accents"])
        lower |= each["type"] == "Lowercase"
        strip |= each["type"] == "StripAccents"
    return lower, strip


def _unigram(model_class: type[Any], tokenizer: Mapping[str, Any]) -> type[Any]:
    class Unigram(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def set_vocab(self) -> None:
            import gguf

            writer, rows = self.gguf_writer, int(self.hparams["vocab_size"])
            pieces = unigram_pieces(tokenizer, rows)
            writer.add_tokenizer_model("t5")
            writer.add_tokenizer_pre("default")
            writer.add_token_list([piece for piece, _, _ in pieces])
            writer.add_token_scores([score for _, score, _ in pieces])
            writer.add_token_types([kind for _, _, kind in pieces])
            writer.add_add_space_prefix(_adds_prefix(tokenizer))
            writer.add_remove_extra_whitespaces(_removes_spaces(tokenizer))
            if model_class.model_arch.name != "T5ENCODER":
                writer.add_token_type_count(self.hparams.get("type_vocab_size", 1))
            if charsmap := _charsmap(tokenizer):
                writer.add_precompiled_charsmap(charsmap)
            gguf.SpecialVocab(self.dir_model, n_vocab=rows).add_to_gguf(writer)
            find_in_texts(writer, tokenizer, writer.kv_data[0]["tokenizer.ggml.token_type"].value)

    return Unigram


def find_in_texts(writer: Any, tokenizer: Mapping[str, Any], types: list[int]) -> None:
    """Have llama.cpp find the special tokens that were added to a tokenizer wherever they stand in a text.

    Some of its users parse a text without control tokens; those that a tokenizer has for itself stay such.
    """
    from gguf import TokenType

    own = {value.value for key, value in writer.kv_data[0].items() if key.endswith("_token_id")}
    for added in tokenizer.get("added_tokens", ()):
        if types[added["id"]] == TokenType.CONTROL and added["id"] not in own:
            types[added["id"]] = int(TokenType.USER_DEFINED)


def unigram_pieces(tokenizer: Mapping[str, Any], rows: int) -> list[tuple[str, float, int]]:
    """(piece, score, type) of every row of the table: the vocabulary's, added tokens', and fillers for rows without one."""
    from gguf import TokenType

    found = [(f"[PAD{row}]", FILLER_SCORE, int(TokenType.UNUSED)) for row in range(rows)]
    model = tokenizer["model"]
    for row, (piece, score) in enumerate(model["vocab"]):
        found[row] = (piece, float(score), int(TokenType.NORMAL))
    for added in tokenizer.get("added_tokens", ()):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        score = found[added["id"]][1] if added["id"] < len(model["vocab"]) else ADDED_SCORE
        found[added["id"]] = (added["content"], score, int(kind))
    if (unknown := model.get("unk_id")) is not None:
        found[unknown] = (*found[unknown][:2], int(TokenType.UNKNOWN))
    return found


def _adds_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text is begun with a blank before it is cut."""
    for each in _flattened(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if each["type"] == "Metaspace":
            return bool(each.get("prepend_scheme", "always" if each.get("add_prefix_space", True) else "never") != "never")
    return any(each["type"] == "Prepend" for each in _flattened(tokenizer.get("normalizer"), "normalizers"))


def _removes_spaces(tokenizer: Mapping[str, Any]) -> bool:
    """Whether several blanks count as one, and those at the ends as none."""
    cuts = any(each["type"] == "WhitespaceSplit" for each in _flattened(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    replaced = any(
        each["type"] == "Replace" and each.get("pattern", {}).get("Regex") in (" {2,}", " +", "\\s+")
        for each in _flattened(tokenizer.get("normalizer"), "normalizers")
    )
    return cuts or replaced


def _charsmap(tokenizer: Mapping[str, Any]) -> bytes | None:
    from base64 import b64decode

    for each in _flattened(tokenizer.get("normalizer"), "normalizers"):
        if each["type"] == "Precompiled" and each.get("precompiled_charsmap"):
            return b64decode(each["precompiled_charsmap"])
    return None


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether texts are cut by GPT-2's pattern alone before byte pairs are merged."""
    steps = list(_flattened(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    return len(steps) == 1 and steps[0]["type"] == "ByteLevel" and bool(steps[0].get("use_regex", True))


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of what cuts words for a byte-level vocabulary, whosever that is; None where it has none."""
    if _is_byte_level(tokenizer):
        return "gpt-2"
    steps = list(_flattened(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    if [each["type"] for each in steps] != ["Split", "ByteLevel"] or steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
        return None
    pattern, whole = steps[0]["pattern"].get("Regex"), bool(tokenizer["model"].get("ignore_merges"))
    return PRE_TOKENIZERS.get((pattern, whole))


def _byte_level(model_class: type[Any]) -> type[Any]:
    from conversion.bert import BertModel, ModernBertModel, RobertaModel

    class ByteLevel(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:  # a vocabulary of one's own, cut by the pattern that all of the kind share
                return BYTE_LEVEL

        def set_vocab(self) -> None:
            if issubclass(model_class, RobertaModel | ModernBertModel) or self.model_arch.name != BertModel.model_arch.name:
                super().set_vocab()
                return
            self._set_vocab_gpt2()
            self.gguf_writer.add_token_type_count(self.hparams.get("type_vocab_size", 1))

    return ByteLevel


def without_vocabulary(model_class: type[Any]) -> type[Any]:
    """A class that only lays out tensors, for a model whose tokenizer is not here; no tensor's shape comes from it."""
    from conversion.gemma import Gemma3Model

    class WithoutVocabulary(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def set_vocab(self) -> None:
            pass

        def _is_tokenizer_xlmroberta(self) -> bool:
            return False  # asked by Nomic-BERT, for its vocabulary alone

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            if issubclass(model_class, Gemma3Model) and "embed_tokens.weight" in name:
                yield self.map_tensor_name(name), data_torch  # Gemma's would look for rows that no token has
                return
            yield from super().modify_tensors(data_torch, name, bid)

    return WithoutVocabulary


def with_ends(model_class: type[Any], tokenizer: Any) -> type[Any]:
    """A class whose file says of the tokens at both ends of a text what the tokenizer really puts there.

    The converter takes them from tokenizer_config.json, which tokenizers of transformers 5 don't follow. What cuts words for
    a vocabulary of one's own is known by its pattern.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())

    class WithEnds(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:
                if known := _pre_tokenizer(document):
                    return known
                raise

        def set_vocab(self) -> None:
            super().set_vocab()
            plain = tokenizer("a", add_special_tokens=False)["input_ids"]
            whole = tokenizer("a")["input_ids"]
            first = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), None)
            if first is None or first > 1 or len(whole) - first - len(plain) > 1:
                return  # what no flag can say; the check of the conversion will show it
            ends = {"bos": whole[:first], "eos": whole[first + len(plain) :]}
            for name, ids in ends.items():
                set_value(self.gguf_writer, f"tokenizer.ggml.add_{name}_token", bool(ids))
                if ids:
                    set_value(self.gguf_writer, f"tokenizer.ggml.{name}_token_id", ids[0])

    return WithEnds


def set_value(writer: Any, key: str, value: bool | int) -> None:
    """Set a metadata value, whether or not the converter has set it already."""
    for shard in writer.kv_data:
        shard.pop(key, None)
    if isinstance(value, bool):
        writer.add_bool(key, value)
    else:
        writer.add_uint32(key, value)


def _flattened(step: Mapping[str, Any] | None, below: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, which may be a sequence of sequences."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for each in step[below]:
        yield from _flattened(each, below)
