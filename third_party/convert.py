"""Drives llama.cpp's official converter in a subprocess: `python convert.py REQUEST.json`.

The request names the unpacked converter, the folder of the transformer, what to write, how vectors are pooled, whether there
is a vocabulary, without which a model can only be laid out, and whether texts are lower-cased first. Written are `layout`
(JSON: architecture, every GGUF tensor with its shape and the Hugging Face tensors it is made of) and, where `outfile` is set,
the unquantized fp32 GGUF.

What the converter refuses or gets wrong although llama.cpp runs it is mended here, by subclasses of its own classes; where
that is about the vocabulary, in `vocabulary.py`. Nothing of tierexport is imported: this runs beside the converter's own
gguf package.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vocabulary import set_value, with_ends, with_vocabulary, without_vocabulary

POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}
"""llama.cpp's numbers for `{arch}.pooling_type` (enum llama_pooling_type)."""

CLASS_OF_TYPE = {
    "bert": "BertModel",
    "ernie": "BertModel",
    "electra": "BertModel",
    "distilbert": "DistilBertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "XLMRobertaModel",
    "jina_embeddings_v3": "XLMRobertaModel",
    "nomic_bert": "NomicBertModel",
    "t5": "T5EncoderModel",
    "mistral": "MistralForCausalLM",
}
"""The converter's class of a model, by `model_type`, by which transformers loads one, too, whatever `architectures` says."""

PREFIXES = ("bert.", "ernie.", "electra.", "distilbert.", "roberta.", "camembert.")
"""What checkpoints of a model with a head put before the encoder's names."""

HEADS = ("lm_head.", "cls.", "classifier.", "qa_outputs.", "pooler.", "discriminator_predictions.", "generator_", "vocab_")
"""Tensors of heads that no embedding uses."""

NOMIC = {
    "n_positions": 8192, "max_trained_positions": 2048, "activation_function": "swiglu", "causal": False,
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
}  # fmt: skip
"""What the converter asks of a Nomic-BERT's config.json: each of transformers' class is like that, and does not say so."""

STALE = (
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
"""Files of an encoder's tokenizer that say the same as tokenizer.json, or something older."""

UNUSED_OUTPUT = "output.weight"
"""The head of a decoder; llama.cpp takes the token table where there is none."""


def observed(model_class: type[Any], made_of: dict[str, list[str]]) -> type[Any]:
    """The converter's class, made to note which Hugging Face tensors each GGUF tensor comes from, and to leave out the head."""

    class Observed(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            for new_name, data in super().modify_tensors(data_torch, name, bid):
                if new_name == UNUSED_OUTPUT:
                    continue
                made_of.setdefault(new_name, []).append(name)
                yield new_name, data

    return Observed


def as_encoder(model_class: type[Any], task_table: bool) -> type[Any]:
    """A class that takes an encoder out of whatever model it was saved in; Ernie's table of tasks is added to that of types."""

    class Encoder(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.cls_out_labels = None

        @classmethod
        def filter_tensors(cls, item: tuple[str, Callable[[], Any]]) -> tuple[str, Callable[[], Any]] | None:
            name, get = item
            name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
            if name.startswith(HEADS) or name.endswith("position_ids"):
                return None
            found: tuple[str, Callable[[], Any]] | None = super().filter_tensors((name, get))
            return found

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            if task_table and name == "embeddings.task_type_embeddings.weight":
                return  # its first row, which every text has, is in the table of types
            if task_table and name == "embeddings.token_type_embeddings.weight":
                tasks = next(get for other, get in self.model_tensors.items() if other.endswith("task_type_embeddings.weight"))
                data_torch = data_torch + tasks()[0]
            yield from super().modify_tensors(data_torch, name, bid)

    return Encoder


def as_loaded(folder: Path, arguments: dict[str, Any], scratch: Path) -> Path:
    """The model's folder as sentence-transformers reads it: its files, but those of the tokenizer as transformers loads it.

    A tokenizer's several files may contradict each other, or lack tokenizer.json; the vocabulary is written from what runs.
    """
    from transformers import AutoTokenizer

    mirror = scratch / folder.resolve().name  # the converter reads names off the folder's
    AutoTokenizer.from_pretrained(folder, local_files_only=True, **arguments).save_pretrained(mirror)
    for file in folder.iterdir():
        if file.name not in STALE and not (mirror / file.name).exists():
            (mirror / file.name).symlink_to(file.resolve())
    return mirror


def class_of(hparams: dict[str, Any]) -> type[Any]:
    """The converter's class for a model."""
    import conversion

    kind = str(hparams.get("model_type"))
    known = CLASS_OF_TYPE.get(kind)
    found: type[Any] = conversion.get_model_class(
        known or conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    )
    if kind in OTHER_KIN:
        return OTHER_KIN[kind](found)
    return as_encoder(found, bool(hparams.get("use_task_id"))) if known else found


def as_jina_v3(model_class: type[Any]) -> type[Any]:
    """Jina's third model as transformers has it: XLM-R with rotary positions, its adapters apart from it."""
    import gguf

    class JinaV3(as_encoder(model_class, False)):  # type: ignore[misc]  # the base is known at run time only
        model_arch = gguf.MODEL_ARCH.JINA_BERT_V3

    return JinaV3


def as_nomic(model_class: type[Any]) -> type[Any]:
    """A Nomic-BERT class that reads the configuration that transformers 5 saves, too."""
    import conversion

    class Nomic(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def __init__(self, folder: Path, *arguments: Any, **options: Any) -> None:
            stated = conversion.ModelBase.load_hparams(folder, False)
            super().__init__(folder, *arguments, **{**options, "hparams": {**NOMIC, **stated}})

    return Nomic


def as_t5_encoder(model_class: type[Any]) -> type[Any]:
    """The encoder of whatever T5 there is; llama.cpp would let no token see those after it, unless the file says otherwise."""

    class T5Encoder(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        @classmethod
        def filter_tensors(cls, item: tuple[str, Callable[[], Any]]) -> tuple[str, Callable[[], Any]] | None:
            if item[0].startswith(("decoder.", "lm_head.")):
                return None
            found: tuple[str, Callable[[], Any]] | None = super().filter_tensors(item)
            return found

        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            self.gguf_writer.add_causal_attention(False)

    return T5Encoder


def as_decoder(model_class: type[Any]) -> type[Any]:
    """A decoder's class that takes the model saved without its head, whose names lack a prefix."""

    class Decoder(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            whole = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
            yield from super().modify_tensors(data_torch, whole, bid)

    return Decoder


OTHER_KIN: dict[str, Callable[[type[Any]], type[Any]]] = {
    "jina_embeddings_v3": as_jina_v3,
    "nomic_bert": as_nomic,
    "t5": as_t5_encoder,
    "mistral": as_decoder,
}
"""What is mended of a class that is not BERT's or RoBERTa's, by `model_type`."""


def mended(request: dict[str, Any], scratch: Path) -> tuple[Path, type[Any]]:
    """The folder to convert, and the converter's class for it with what it gets wrong put right."""
    import conversion
    from conversion.bert import BertModel, ModernBertModel
    from conversion.t5 import T5EncoderModel
    from transformers import AutoTokenizer

    folder = Path(request["model"])
    model_class = class_of(conversion.ModelBase.load_hparams(folder, False))
    if issubclass(model_class, ModernBertModel):
        model_class = with_old_names(model_class)
    if not request["vocabulary"]:
        return folder, without_vocabulary(model_class)
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not issubclass(model_class, BertModel | T5EncoderModel):
        return folder, with_ends(model_class, loaded)
    folder = as_loaded(folder, request["tokenizer_arguments"], scratch)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        model_class = with_vocabulary(model_class, json.loads(tokenizer.read_text("utf-8")), request["lowercase"])
    return folder, with_ends(model_class, loaded) if issubclass(model_class, T5EncoderModel) else model_class


def with_old_names(model_class: type[Any]) -> type[Any]:
    """A ModernBERT class that reads the configuration that transformers 5 saves, too."""

    class OldNames(model_class):  # type: ignore[misc]  # the base is known at run time only
        model_arch = model_class.model_arch

        def set_gguf_parameters(self) -> None:
            if "layer_norm_eps" not in self.hparams and "norm_eps" in self.hparams:
                self.hparams["layer_norm_eps"] = self.hparams["norm_eps"]
            whole = [at for at, kind in enumerate(self.hparams.get("layer_types", ())) if kind == "full_attention"]
            if "global_attn_every_n_layers" not in self.hparams and len(whole) > 1:
                self.hparams["global_attn_every_n_layers"] = whole[1] - whole[0]
            super().set_gguf_parameters()

    return OldNames


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Convert, or only lay out, one model; returns the layout."""
    sys.path[:0] = [request["converter"], str(Path(request["converter"]) / "gguf-py")]
    import gguf
    import torch

    gguf.Metadata.load_model_card = staticmethod(lambda *_: {})  # what it states is tierexport's to say, and may be anything
    made_of: dict[str, list[str]] = {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        folder, model_class = mended(request, Path(scratch))
        model = observed(model_class, made_of)(
            folder,
            gguf.LlamaFileType.ALL_F32,
            Path(request["outfile"] or folder / "unwritten.gguf"),
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
    """Have the converter state the model's pooling, whatever it finds in the files beside the transformer."""
    original: Callable[[], None] = model.set_gguf_parameters
    model._try_set_pooling_type = lambda: None  # it takes one of several, and refuses what is not asked of it

    def set_gguf_parameters() -> None:
        original()
        set_value(model.gguf_writer, f"{model.gguf_writer.arch}.pooling_type", POOLING[pooling])

    model.set_gguf_parameters = set_gguf_parameters


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    layout = convert(job)
    Path(job["layout"]).write_text(json.dumps(layout), "utf-8")
