"""The families of embedding models that tests/test_families.py builds, each a tiny random model with a tokenizer of its kind.

`docs/models.md` is generated from the same table: `python tests/families.py docs/models.md`.
"""

import functools
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import odd_models as odd

QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""How texts are cut before byte pairs are merged, as the tokenizer.json of Qwen2 and of Llama 3 say it."""

QWEN_REMARK = "last token pooled, the end of text appended, an instruction before queries"

GROUPED = {"num_key_value_heads": 1, "head_dim": 32}


# --- tokenizers


@functools.cache
def _merged() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pairs merged on the calibration texts: tokens by number, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        odd.lines(), trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    )
    document = json.loads(tokenizer.to_str())["model"]
    return document["vocab"], [tuple(pair) for pair in document["merges"]]


def byte_pairs(
    folder: Path, kind: str, special: Sequence[str], ends: Sequence[str], words: str | None = None
) -> dict[str, int]:
    """A byte-level BPE, cut by GPT-2's pattern or by `words`; `ends`: the text is "$A" there. Returns the special tokens."""
    folder.mkdir(parents=True)
    vocab, merges = _merged()
    numbers = {**{name: at for at, name in enumerate(special)}, **{name: at + len(special) for name, at in vocab.items()}}
    tokenizer = Tokenizer(models.BPE(numbers, merges, ignore_merges=words == LLAMA3_WORDS))
    if kind != "Roberta":
        tokenizer.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    cut = [pre_tokenizers.Split(Regex(words), "isolated"), level] if words else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut) if cut else level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if kind == "Roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=list(ends), special_tokens=[(name, numbers[name]) for name in ends if name != "$A"]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return {name: numbers[name] for name in special}


def settings(folder: Path, **named: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 48, **named}))


@functools.cache
def _trained(options: str) -> bytes:
    """A sentencepiece model, trained on every third of the calibration texts."""
    import sentencepiece

    with io.BytesIO() as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(odd.lines()[::3]),
            model_writer=written,
            vocab_size=1500,
            minloglevel=2,
            **json.loads(options),
        )
        return written.getvalue()


def sentence_pieces(folder: Path, name: str, family: str, kind: str = "unigram", **more: Any) -> Any:
    """A tokenizer of a family's class on a sentencepiece model of its own, which is kept beside it."""
    folder.mkdir(parents=True)
    (folder / name).write_bytes(_trained(json.dumps({"model_type": kind, **more})))
    tokenizer = getattr(transformers, f"{family}Tokenizer").from_pretrained(folder, model_max_length=48)
    tokenizer.save_pretrained(folder)
    return tokenizer


def xlm_roberta_tokens(folder: Path, family: str = "XLMRoberta") -> int:
    """The tokenizer of XLM-R and its kin, in tokenizer.json alone; how many tokens it has."""
    name = "sentencepiece.bpe.model"
    tokenizer = sentence_pieces(folder, name, family, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    (folder / name).unlink()
    return len(tokenizer)


def with_ends(folder: Path, single: Sequence[str]) -> None:
    """Have tokenizer.json put these tokens around a text, "$A", as embedding models of decoders do."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=list(single), special_tokens=[(name, tokenizer.token_to_id(name)) for name in single if name != "$A"]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


# --- models


def prompts(folder: Path, **named: str) -> None:
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": named}))


def _bert(folder: Path) -> None:
    odd.saved(folder, "Bert", odd.wordpiece(folder, lowercase=True))


def _distilbert(folder: Path) -> None:
    rows = odd.wordpiece(folder, lowercase=True)
    odd.saved(folder, "DistilBert", rows, dim=64, hidden_dim=128, n_layers=2, n_heads=2)


def _roberta(folder: Path) -> None:
    byte_pairs(folder, "Roberta", odd.SPECIAL, ())
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), odd.SPECIAL, strict=True))
    settings(folder, tokenizer_class="RobertaTokenizer", cls_token="<s>", sep_token="</s>", **names)
    odd.saved(folder, "Roberta", _rows(folder), **odd.ROBERTA)


def _xlm_roberta(folder: Path) -> None:
    odd.saved(folder, "XLMRoberta", xlm_roberta_tokens(folder), pad_token_id=1, max_position_embeddings=130)


def _camembert(folder: Path) -> None:
    rows = xlm_roberta_tokens(folder, "Camembert")
    ends = {"pad_token_id": 1, "bos_token_id": 5, "eos_token_id": 6, "max_position_embeddings": 130, "type_vocab_size": 1}
    odd.saved(folder, "Camembert", rows, **ends)


def _nomic(folder: Path) -> None:
    odd.saved(folder, "NomicBert", odd.wordpiece(folder, lowercase=True))
    prompts(folder, query="search_query: ", document="search_document: ")


def _modernbert(folder: Path) -> None:
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    byte_pairs(folder, "ModernBert", special, ("[CLS]", "$A", "[SEP]"))
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    settings(folder, tokenizer_class="PreTrainedTokenizerFast", **names)
    ids = {"pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    local = {"local_attention": 16, "global_attn_every_n_layers": 3, "num_hidden_layers": 4}
    odd.saved(folder, "ModernBert", _rows(folder), **ids, **local, initializer_cutoff_factor=2.0)


def _jina_v3(folder: Path) -> None:
    odd.saved(folder, "JinaEmbeddingsV3", xlm_roberta_tokens(folder), pad_token_id=1, max_position_embeddings=130)


def _gte(folder: Path) -> None:
    odd.saved(folder, "Gte", xlm_roberta_tokens(folder), pad_token_id=1)


def _eurobert(folder: Path) -> None:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|mask|>", "<|pad|>"]
    byte_pairs(folder, "EuroBert", special, (special[0], "$A", special[1]), LLAMA3_WORDS)
    names = {"bos_token": special[0], "eos_token": special[1], "mask_token": special[2], "pad_token": special[3]}
    settings(folder, tokenizer_class="PreTrainedTokenizerFast", **names)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "mask_token_id": 2, "pad_token_id": 3}
    odd.saved(folder, "EuroBert", _rows(folder), **ids, **GROUPED)


def _t5(folder: Path) -> None:
    rows = len(sentence_pieces(folder, "spiece.model", "T5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    torch.manual_seed(1)
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=rows, **sizes)).save_pretrained(folder)
    odd.describe(folder)


def _qwen(folder: Path, family: str) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte_pairs(folder, family, special, ("$A", "<|endoftext|>"), QWEN_WORDS)
    settings(folder, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    odd.saved(folder, family, _rows(folder), **ids, **GROUPED)
    odd.describe(folder, {"pooling_mode_lasttoken": True})
    prompts(folder, query="Instruct: Given a web search query, retrieve passages that answer it\nQuery:")


def _llama(folder: Path) -> None:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    byte_pairs(folder, "Llama", special, ("<|begin_of_text|>", "$A", "<|end_of_text|>"), LLAMA3_WORDS)
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[2]}
    settings(folder, tokenizer_class="PreTrainedTokenizerFast", **names)
    odd.saved(folder, "Llama", _rows(folder), bos_token_id=0, eos_token_id=1, pad_token_id=2, **GROUPED)
    odd.describe(folder, {"pooling_mode_lasttoken": True})


def _mistral(folder: Path) -> None:
    pieces = {"byte_fallback": True, "pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2, "normalization_rule_name": "identity"}
    more = {"remove_extra_whitespaces": False, "add_dummy_prefix": True, "split_digits": True}
    tokenizer = sentence_pieces(folder, "tokenizer.model", "Llama", "bpe", **pieces, **more)
    with_ends(folder, ("<s>", "$A", "</s>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    settings(folder, tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=True, legacy=False, **names)
    odd.saved(folder, "Mistral", len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=2, **GROUPED)
    odd.describe(folder, {"pooling_mode_lasttoken": True})
    prompts(folder, query="Instruct: Retrieve semantically similar text\nQuery: ")


def _embedding_gemma(folder: Path) -> None:
    pieces = {"byte_fallback": True, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "normalization_rule_name": "identity"}
    more = {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "split_digits": True}
    marks = {"unk_piece": "<unk>", "bos_piece": "<bos>", "eos_piece": "<eos>", "pad_piece": "<pad>"}
    symbols = {"user_defined_symbols": ["<mask>", "\n\n", "\u2581\u2581"]}
    tokenizer = sentence_pieces(folder, "tokenizer.model", "Gemma", "bpe", **pieces, **more, **marks, **symbols)
    with_ends(folder, ("<bos>", "$A", "<eos>"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    settings(folder, tokenizer_class="GemmaTokenizer", add_bos_token=True, add_eos_token=True, **names)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    both = {"use_bidirectional_attention": True, "sliding_window": 16, "query_pre_attn_scalar": 32, "num_hidden_layers": 6}
    odd.saved(folder, "Gemma3Text", len(tokenizer), **ids, **both, **GROUPED)
    odd.describe(folder, more=(("2_Dense", "Dense"), ("3_Dense", "Dense")))
    _dense(folder / "2_Dense", 64, 128)
    _dense(folder / "3_Dense", 128, 64)
    prompts(folder, query="task: search result | query: ", document="title: none | text: ")


def _dense(folder: Path, columns: int, rows: int) -> None:
    folder.mkdir()
    told = {
        "in_features": columns,
        "out_features": rows,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "config.json").write_text(json.dumps(told))
    torch.manual_seed(2)
    save_file({"linear.weight": torch.randn(rows, columns) / columns**0.5}, folder / "model.safetensors")


def _mpnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(odd.lines(), trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "[UNK]", "mask_token": "<mask>"}
    settings(folder, tokenizer_class="MPNetTokenizer", cls_token="<s>", sep_token="</s>", **names)
    odd.saved(folder, "MPNet", _rows(folder), pad_token_id=1, max_position_embeddings=130)


def _deberta(folder: Path) -> None:
    marks = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    tokenizer = sentence_pieces(folder, "spm.model", "DebertaV2", pad_id=0, bos_id=1, eos_id=2, unk_id=3, **marks)
    relative = {"relative_attention": True, "position_buckets": 32, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
    more = {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "max_position_embeddings": 128}
    odd.saved(folder, "DebertaV2", len(tokenizer), type_vocab_size=0, **relative, **more)


def _albert(folder: Path) -> None:
    marks: dict[str, Any] = {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    tokenizer = sentence_pieces(folder, "spiece.model", "Albert", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, **marks)
    odd.saved(folder, "Albert", len(tokenizer), embedding_size=32, pad_token_id=0)


def _rows(folder: Path) -> int:
    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


# --- the table


@dataclass(frozen=True)
class Family:
    """A family of models: how to make a tiny one, and what is known of its exports.

    `refused`: why a GGUF can't hold it, in the words of the refusal. `nearest`: how many matrices of the tiny model's layers
    are rounded to the nearest at four bits, in which format, all others with error feedback.
    """

    make: Callable[[Path], None]
    known: str
    refused: str = ""
    nearest: Mapping[str, int] = field(default_factory=dict)
    remarks: str = ""


FAMILIES = {
    "BERT": Family(_bert, "MiniLM, bge, e5, gte (2023), Snowflake Arctic xs to l", remarks="Ernie and ELECTRA likewise"),
    "DistilBERT": Family(_distilbert, "multi-qa-distilbert, msmarco-distilbert"),
    "RoBERTa": Family(_roberta, "all-distilroberta, all-roberta-large", remarks="any byte-level BPE that GPT-2's pattern cuts"),
    "XLM-R": Family(_xlm_roberta, "multilingual-e5, bge-m3 (dense vectors), Snowflake Arctic l v2"),
    "CamemBERT": Family(_camembert, "sentence-camembert"),
    "Nomic-BERT": Family(_nomic, "nomic-embed-text v1 and v1.5, Snowflake Arctic m long"),
    "ModernBERT": Family(_modernbert, "modernbert-embed, gte-modernbert", remarks="attention local in two layers of three"),
    "Jina v3": Family(_jina_v3, "jina-embeddings-v3-hf", remarks="without its adapters: merge one first"),
    "GTE": Family(_gte, "gte-multilingual, Snowflake Arctic m v2", refused="is a GTE, whose layers have rotary positions"),
    "EuroBERT": Family(_eurobert, "EuroBERT", remarks="pre-tokenizer known by Llama 3's pattern"),
    "T5 encoder": Family(_t5, "sentence-t5, gtr-t5", remarks="also the encoder of a whole T5; ReLU or gated GELU"),
    "Qwen2": Family(functools.partial(_qwen, family="Qwen2"), "embedders on Qwen2 with causal attention", remarks=QWEN_REMARK),
    "Qwen3": Family(functools.partial(_qwen, family="Qwen3"), "Qwen3-Embedding", remarks=QWEN_REMARK),
    "Llama": Family(_llama, "embedders on Llama 3", remarks="causal attention, as transformers runs it"),
    "Mistral": Family(_mistral, "e5-mistral, SFR-Embedding, Linq-Embed", remarks="texts cut within the sliding window"),
    "EmbeddingGemma": Family(_embedding_gemma, "embeddinggemma", remarks="two Dense heads; torchao: token table in fp32"),
    "MPNet": Family(_mpnet, "all-mpnet-base, paraphrase-mpnet", refused="is an MPNet, whose attention adds a bias by distance"),
    "DeBERTa v2": Family(_deberta, "mdeberta, deberta-v3", refused="is a DeBERTa, whose attention has positions apart"),
    "ALBERT": Family(_albert, "paraphrase-albert", refused="is an ALBERT, whose layers share one set of weights",
                     nearest={"torchao": 6}, remarks="error feedback would fit the inputs of the first layer alone"),
}  # fmt: skip

LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "Jina v2": (
        {"model_type": "bert", "architectures": ["JinaBertForMaskedLM"], "position_embedding_type": "alibi"},
        "wants to run code of its own .*positions by alibi",
    ),
    "NeoBERT": ({"model_type": "neobert", "architectures": ["NeoBERT"]}, "wants to run code of its own"),
    "Nomic-BERT with experts": ({"model_type": "nomic_bert", "moe_every_n_layers": 2}, "is a Nomic-BERT with experts"),
}
"""Families that llama.cpp runs and the installed transformers has no class for: config.json, and the words of the refusal."""


# --- docs/models.md


def page() -> str:
    """docs/models.md."""
    return "\n".join([*_head(), *_rows_of_page(), "", *_tail()]) + "\n"


def _head() -> Iterator[str]:
    yield "# Families of models"
    yield ""
    yield "<!-- `make docs` writes this page from the table of tests/families.py, which tests/test_families.py builds. -->"
    yield ""
    yield "Each is built as a tiny random model of its own class in transformers, with a tokenizer of its kind. Its fp16"
    yield "artifacts agree with fp32 on the probes of the conversion check (equal tokens, cosines of at least 0.9999); at"
    yield "four bits error feedback loses less than rounding to the nearest. A family that is not here may work, too:"
    yield "`tierexport plan` says whether a GGUF can hold a model."
    yield ""
    yield "| family | models of it | GGUF | torchao | matrices of layers at four bits | remarks |"
    yield "| --- | --- | --- | --- | --- | --- |"


def _rows_of_page() -> Iterator[str]:
    for name, family in FAMILIES.items():
        gguf = f"refused: {family.refused.partition(', ')[2]}" if family.refused else "yes"
        nearest = ", ".join(
            f"{count} of the tiny model's to the nearest ({fmt})" for fmt, count in family.nearest.items() if count
        )
        rounding = nearest or "error feedback"
        yield f"| {name} | {family.known} | {gguf} | yes | {rounding} | {family.remarks} |"


def _tail() -> Iterator[str]:
    yield f"{', '.join(LEFT_OUT)}: llama.cpp runs them, but the installed transformers has no class for them, and no"
    yield "code is run that comes with a model, so there is no fp32 to compare with: they are refused when opened."


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
