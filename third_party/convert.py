"""Drives llama.cpp's official converter in a process of its own: `python convert.py REQUEST.json`.

The request names the unpacked converter, the model folder, what to write and how the vectors are
pooled. Written are `layout` (JSON: architecture, every GGUF tensor with its shape and the Hugging
Face tensors it is made of) and, where `outfile` is set, the unquantized fp32 GGUF.

Nothing of tierexport is imported here: this file runs beside the converter's own gguf package.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}
"""llama.cpp's numbers for `{arch}.pooling_type` (enum llama_pooling_type)."""


def observed(model_class: type[Any], made_of: dict[str, list[str]]) -> type[Any]:
    """The converter's class, made to note which Hugging Face tensors each GGUF tensor comes from."""

    class Observed(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            for new_name, data in super().modify_tensors(data_torch, name, bid):
                made_of.setdefault(new_name, []).append(name)
                yield new_name, data

    return Observed


def with_sentencepiece(model_class: type[Any]) -> type[Any]:
    """A BERT class that takes the converter's own XLM-R vocabulary.

    The converter refuses a BertModel whose tokenizer is a sentencepiece Unigram (multilingual-e5
    and its kin), though llama.cpp runs it.
    """

    class SentencepieceBert(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def set_vocab(self) -> None:
            self._xlmroberta_set_vocab()

    return SentencepieceBert


def is_unigram(folder: Path) -> bool:
    """Whether the model's tokenizer is a sentencepiece Unigram."""
    tokenizer = folder / "tokenizer.json"
    return tokenizer.is_file() and json.loads(tokenizer.read_text("utf-8")).get("model", {}).get("type") == "Unigram"


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Convert, or only lay out, one model; returns the layout."""
    sys.path[:0] = [request["converter"], str(Path(request["converter"]) / "gguf-py")]
    import conversion
    import gguf
    import torch

    gguf.Metadata.load_model_card = staticmethod(lambda *_: {})  # what it states is tierexport's to say, and may be anything
    folder = Path(request["model"])
    hparams = conversion.ModelBase.load_hparams(folder, False)
    model_class = conversion.get_model_class(conversion.get_model_architecture(hparams, conversion.ModelType.TEXT))
    if model_class.__name__ == "BertModel" and is_unigram(folder):
        model_class = with_sentencepiece(model_class)
    made_of: dict[str, list[str]] = {}
    outfile = Path(request["outfile"] or folder / "unwritten.gguf")
    with torch.inference_mode():
        model = observed(model_class, made_of)(
            folder,
            gguf.LlamaFileType.ALL_F32,
            outfile,
            model_name=request["name"],
            sentence_transformers_dense_modules=request["dense"],
        )
        set_parameters(model, request["pooling"])
        if request["outfile"]:
            model.write()
        else:
            model.prepare_tensors()
            model.prepare_metadata(vocab_only=False)
    tensors = {name: info for shard in model.gguf_writer.tensors for name, info in shard.items()}
    return {
        "architecture": gguf.MODEL_ARCH_NAMES[model.model_arch],
        "tensors": [
            {"name": name, "shape": [int(size) for size in info.shape], "sources": made_of.get(name, [])}
            for name, info in tensors.items()
        ],
    }


def set_parameters(model: Any, pooling: str) -> None:
    """Have the converter state the pooling where the model's files don't."""
    original: Callable[[], None] = model.set_gguf_parameters

    def set_gguf_parameters() -> None:
        original()
        key = f"{model.gguf_writer.arch}.pooling_type"
        if not any(key in shard for shard in model.gguf_writer.kv_data):
            model.gguf_writer.add_uint32(key, POOLING[pooling])

    model.set_gguf_parameters = set_gguf_parameters


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    layout = convert(job)
    Path(job["layout"]).write_text(json.dumps(layout), "utf-8")
