"""Short texts of the kinds on which conversions go wrong, and what two programs make of each.

A screen of ordinary sentences shows nothing of capitals, of scripts, of tokens that were added to a tokenizer, or of where
long texts are cut; those are the differences that public bug reports describe.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tierexport.base.records import Source
from tierexport.model.folder import transformer_folder
from tierexport.model.languages import speaks

LONGEST_CUT = 2048
"""Tokens up to which a text is made that has to be cut; beyond, it would take longer than all the rest."""

ADDED_PER_TEXT, MOST_ADDED_TEXTS = 8, 48
"""How many added tokens stand in one text, and how many such texts are made at most: some tokenizers have thousands."""

CORE_TOKENS = ("unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
"""Tokens that a tokenizer has for itself; nobody's texts have them."""

WORDS = ("the", "river", "rose", "slowly", "after", "three", "days", "of", "rain", "and", "nobody", "slept", "that", "night")


@dataclass(frozen=True)
class Probe:
    """A text of a kind ("query" or "passage", which selects the prompt), its subject, and the likely cause of a difference.

    What is not `required` is reported, and stops nothing: llama.cpp is known not to do it, and few texts have it.
    """

    name: str
    text: str
    cause: str
    kind: str = "passage"
    required: bool = True


def probes(source: Source, max_tokens: int) -> list[Probe]:
    """The probes for a model whose texts are cut at `max_tokens`."""
    return [
        Probe("plain", "The committee approved the budget for the new library.", ENDS),
        Probe("query prompt", "how long does it take to boil an egg", ENDS, kind="query"),
        Probe("passage prompt", "An egg is soft-boiled after four to six minutes.", ENDS),
        Probe("capitals and accents", "Café MÜLLER opens at Eight; a NAÏVE façade, Ångström and Señor Núñez.", CASE),
        Probe("Chinese and Japanese", "北京是中国的首都。東京タワーはどこですか、がっこう。", SCRIPT),
        Probe("Arabic", "تقع المكتبة الجديدة بالقرب من النهر، وتُفتح في الثامنة.", SCRIPT),
        Probe("Cyrillic and Greek", "Новая библиотека откроется ёжику в Йошкар-Оле. Η βιβλιοθήκη άνοιξε.", SCRIPT),
        Probe("emoji", "Great news 🎉 we shipped it 🚀👍🏽 — thanks ❤️", SCRIPT),
        Probe(
            "digits and signs", "On 2026-03-14 it cost $1,234.56 (≈ 50 % more), i.e. 3 × 10^8 m/s; e-mail: a_b@c.org", SCRIPT
        ),
        Probe("blanks", "two  blanks,\ta tab\nand a line break ", BLANKS),
        Probe("a blank first", " a blank at the beginning", FIRST_BLANK, required=not _begins_with_blank(source)),
        *_added(source),
        Probe("Korean", "새 도서관은 강 근처에 있습니다.", HANGUL, required=speaks(source, "ko")),
        Probe("a long word", f"see {'abcdefghij' * 12} there", LONG_WORD, required=False),
        Probe("the cut", _long(max_tokens), CUT),
    ]


ENDS = "the tokens at the ends of a text, or its prompt, are others"
CASE = "capitals or accents are normalized otherwise (lowercase and strip_accents of the tokenizer)"
SCRIPT = "the tokenizer's normalizer or pre-tokenizer does something that llama.cpp's has not"
BLANKS = "several blanks, or those at the ends, are kept or removed otherwise"
ADDED = "a token that was added to the tokenizer is not found in a text, or blanks around it are taken with it otherwise"
FIRST_BLANK = "llama.cpp puts a blank before the text even where it begins with one"
HANGUL = "llama.cpp does not take Hangul apart as Unicode's NFD does"
LONG_WORD = "WordPiece gives up on words of over 100 characters, llama.cpp does not"
CUT = "texts are cut elsewhere, or the positions of long texts are others"


def _long(max_tokens: int) -> str:
    """A text of more than `max_tokens` tokens, of which every word is at least one; of LONGEST_CUT words where that is less."""
    count = min(max_tokens + 8, LONGEST_CUT)
    return " ".join(WORDS[index % len(WORDS)] for index in range(count))


def _begins_with_blank(source: Source) -> bool:
    """Whether it is a tokenizer of Llama 2's kind, which in transformers begins each text with a blank, but never with two."""
    file = transformer_folder(source.path) / "tokenizer.json"
    return file.is_file() and bool(json.loads(file.read_text("utf-8"))["model"].get("byte_fallback"))


def _added(source: Source) -> Iterator[Probe]:
    """Texts with the tokens that were added to the vocabulary, those of the tokenizer's own apart."""
    core, added = _added_tokens(source)
    texts = [added[at : at + ADDED_PER_TEXT] for at in range(0, len(added), ADDED_PER_TEXT)]
    for number, tokens in enumerate(texts[:MOST_ADDED_TEXTS], 1):
        text = " ".join(f"{WORDS[at]} {token}" for at, token in enumerate(tokens)) + " indeed"
        yield Probe(f"added tokens {number}", text, ADDED)
    if core:
        yield Probe("the tokenizer's own tokens", " and ".join(core), ADDED, required=False)


def _added_tokens(source: Source) -> tuple[list[str], list[str]]:
    """The tokens of a tokenizer's own, and those that were added beside them, in the order of their numbers."""
    folder = transformer_folder(source.path)
    file = folder / "tokenizer.json"
    if file.is_file():
        listed = [each["content"] for each in json.loads(file.read_text("utf-8")).get("added_tokens", ())]
    else:
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(folder, local_files_only=True).added_tokens_decoder
        listed = [found[number].content for number in sorted(found)]
    core = set(_core_tokens(source))
    blank = {each for each in listed if not each.replace("\u2581", " ").strip()}  # so sentencepiece spells blanks, and no text
    return [each for each in listed if each in core], [each for each in listed if each not in core | blank]


def _core_tokens(source: Source) -> Iterator[str]:
    """Tokens that tokenizers have for themselves, by common names and by this one's settings."""
    file = transformer_folder(source.path) / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    yield from ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<unk>", "<pad>", "<mask>")
    for name in CORE_TOKENS:
        token = settings.get(name)
        if found := token.get("content") if isinstance(token, dict) else token:
            yield str(found)


def by_kind(asked: Sequence[Probe]) -> dict[str, list[str]]:
    """The probes' texts by the kind of their prompt, in order."""
    kinds = dict.fromkeys(probe.kind for probe in asked)
    return {kind: [probe.text for probe in asked if probe.kind == kind] for kind in kinds}
