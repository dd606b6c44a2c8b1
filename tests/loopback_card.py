"""The hub's rules for the metadata of a model card, as far as models of this kind meet them.

They are one table. The hub only warns of a pipeline tag that it does not know; here that is an error too.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

LICENSES = """afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl
    ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"""
PIPELINE_TAGS = """any-to-any audio-classification audio-text-to-text automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
    image-segmentation image-text-to-text image-to-image image-to-text object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering tabular-classification
    tabular-regression text-classification text-generation text-ranking text-to-audio text-to-image text-to-speech
    text-to-video time-series-forecasting token-classification translation video-classification visual-document-retrieval
    visual-question-answering zero-shot-classification zero-shot-image-classification"""
RELATIONS = "adapter finetune merge quantized"
REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)

CARD = {
    "license?": (frozenset(LICENSES.split()),),
    "base_model?": (REPOSITORY,),
    "base_model_relation?": frozenset(RELATIONS.split()),
    "datasets?": (REPOSITORY,),
    "language?": (str,),
    "library_name?": str,
    "metrics?": [str],
    "pipeline_tag?": frozenset(PIPELINE_TAGS.split()),
    "tags?": [str],
    "widget?": [dict],
    "model-index?": [
        {
            "name": str,
            "results": [
                {
                    "task": {"type": str, "name?": str},
                    "dataset": {"type": str, "name": str, "config?": str, "split?": str, "revision?": str},
                    "metrics": [{"type": str, "value": object, "name?": str}],
                }
            ],
        }
    ],
}
"""A type, a set of choices or a pattern for one value, [rule] for an array, (rule,) for one or an array; "?" is optional."""

WORDS = {str: "a string", dict: "an object"}


def card_errors(card: str) -> list[str] | None:
    """The hub's complaints about a card's metadata, or None for a card without any."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", card, re.DOTALL)
    if block is None or not block[1].strip():
        return None
    try:
        metadata = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"YAML metadata is not valid: {error}"]
    return list(_complaints(metadata, CARD, ""))


def _complaints(value: Any, rule: Any, place: str) -> Iterator[str]:
    """What is wrong with the value at the place, such as model-index[0].name."""
    if isinstance(rule, dict):
        if not isinstance(value, dict):
            yield f'"{place or "metadata"}" must be an object'
            return
        for key, inner in rule.items():
            name = key.removesuffix("?")
            if name in value:
                yield from _complaints(value[name], inner, f"{place}.{name}".lstrip("."))
            elif name == key:
                yield f'"{place}.{name}" is required'
    elif isinstance(rule, list) or (isinstance(rule, tuple) and isinstance(value, list)):
        if not isinstance(value, list):
            yield f'"{place}" must be an array'
            return
        for index, item in enumerate(value):
            yield from _complaints(item, rule[0], f"{place}[{index}]")
    else:
        yield from _complaint(value, rule[0] if isinstance(rule, tuple) else rule, place)


def _complaint(value: Any, rule: Any, place: str) -> Iterator[str]:
    if isinstance(rule, re.Pattern):
        if not isinstance(value, str) or not rule.fullmatch(value):
            yield f'"{place}" with value "{value}" is not valid. Use a model id from https://hf.co/models.'
    elif isinstance(rule, frozenset):
        if not isinstance(value, str) or value not in rule:
            yield f'"{place}" must be one of [{", ".join(sorted(rule))}]'
    elif rule is object:
        if value is None:
            yield f'"{place}" is required'
    elif not isinstance(value, rule):
        yield f'"{place}" must be {WORDS[rule]}'
