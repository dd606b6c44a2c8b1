"""Tiny models of the kinds that public reports describe, each a folder with random weights wide enough to matter."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tierexport.datasets.calibration import every_text
from tierexport.model.source import open_source

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {"initializer_range": 0.2}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 130, "type_vocab_size": 1}


def lines() -> list[str]:
    return [text.text for text in every_text("builtin")]


def saved(folder: Path, family: str, rows: int, **more: Any) -> Path:
    """The weights of a family, and the files of sentence-transformers beside them."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(vocab_size=rows, **{**SIZES, **WIDE, **more})
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    describe(folder)
    return folder


def describe(folder: Path, pooling: Mapping[str, Any] | None = None, more: tuple[tuple[str, str], ...] = ()) -> None:
    """modules.json and its kin, for a model pooled by the mean of 64 dimensions and normalized."""
    listed = [("", "Transformer"), ("1_Pooling", "Pooling"), *more, ("9_Normalize", "Normalize")]
    entries = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, **(pooling or {"pooling_mode_mean_tokens": True})})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))


def minilm_tokenizer(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (file := open_source("all-MiniLM-L6-v2").path / name).is_file():
            shutil.copy(file, folder)
    return 30522


def wordpiece(folder: Path, lowercase: bool, vocabulary_alone: bool = False) -> int:
    """A WordPiece vocabulary of one's own, or its old file alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=None if lowercase else False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(lines(), trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special))
    known = sorted(tokenizer.get_vocab().items(), key=lambda each: each[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in known), "utf-8")
    loaded = transformers.BertTokenizerFast.from_pretrained(folder, do_lower_case=lowercase, model_max_length=48)
    loaded.save_pretrained(folder)
    if vocabulary_alone:
        (folder / "tokenizer.json").unlink()
    return len(known)


def unigram(folder: Path, family: str = "XLMRoberta", json_alone: bool = True) -> Any:
    """A sentencepiece vocabulary as XLM-R or CamemBERT number it."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()), model_prefix=str(folder / "spm"), vocab_size=1500, model_type="unigram", unk_id=0,
        bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spm.vocab").unlink()
    (folder / "spm.model").rename(folder / "sentencepiece.bpe.model")
    tokenizer = getattr(transformers, f"{family}Tokenizer").from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if json_alone:
        (folder / "sentencepiece.bpe.model").unlink(missing_ok=True)
    return tokenizer


def byte_pairs(folder: Path, old_files: bool = False) -> int:
    """A byte-level BPE of one's own with RoBERTa's ends, or its two old files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        lines(), trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "RobertaTokenizer", "cls_token": "<s>", "sep_token": "</s>", "model_max_length": 48, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if old_files:
        tokenizer.model.save(str(folder))
        (folder / "tokenizer.json").unlink()
    return tokenizer.get_vocab_size()


def with_added_tokens(tokenizer: Any, folder: Path) -> int:
    """Words and markers added to a tokenizer, as fine-tunes add them; how many tokens there then are."""
    tokenizer.add_tokens(["covid-19", "[ENT]", "sars"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[D]"]})
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
