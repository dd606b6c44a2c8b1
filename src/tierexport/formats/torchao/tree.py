"""What a model consists of, by its module tree, built without memory."""

from pathlib import Path

import torch
from safetensors import safe_open

from tierexport.base.errors import SourceError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Source, Tensor
from tierexport.model.encoder import without_memory
from tierexport.model.folder import transformer_folder
from tierexport.model.roles import UNQUANTIZED_ROLE, gguf_name, role_and_layer
from tierexport.model.weights import module_weights


def tensors(source: Source) -> tuple[Tensor, ...]:
    """Every tensor of the module tree, and of the modules after the transformer.

    Raises SourceError when transformers does not know the architecture.
    """
    found = [_tensor(name, shape, kind) for name, (shape, kind) in _module_tree(transformer_folder(source.path)).items()]
    for file in module_weights(source.path):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a dict
                shape = tuple(opened.get_slice(name).get_shape())
                found.append(Tensor(f"{file.parent.name}/{name}", UNQUANTIZED_ROLE, None, shape))
    return tuple(found)


def _module_tree(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and kind of module ("linear", "embedding", "other") of every tensor that is saved."""
    import_sentence_transformers()
    from transformers import AutoConfig

    try:
        model = without_memory(AutoConfig.from_pretrained(path, local_files_only=True))
    except Exception as error:  # a stranger's configuration fails in any way
        raise SourceError(f"transformers does not know the architecture of {path}: {error}") from error
    kinds = {torch.nn.Linear: "linear", torch.nn.Embedding: "embedding"}
    found = dict(model.named_modules())

    def kind(name: str) -> str:
        module = found[name.rpartition(".")[0]]
        if isinstance(module, torch.nn.Embedding) and next(module.buffers(), None) is not None:
            return "other"  # transformers leaves the buffers of a module at random whose weight is quantized (Gemma's scale)
        return next((kind for base, kind in kinds.items() if isinstance(module, base)), "other")

    tensors = model.state_dict(keep_vars=True)
    saved = {id(tensor): name for name, tensor in reversed(tensors.items())}  # of tied ones the first
    return {name: (tuple(tensor.shape), kind(name)) for name, tensor in tensors.items() if saved[id(tensor)] == name}


def _tensor(name: str, shape: tuple[int, ...], kind: str) -> Tensor:
    """A tensor with its role. Only matrices of Linear and Embedding modules can be quantized."""
    known = gguf_name(name)
    if kind == "other" or len(shape) < 2 or (kind == "embedding" and known is None):
        return Tensor(name, UNQUANTIZED_ROLE, role_and_layer(known, shape)[1] if known else None, shape)
    role, layer = role_and_layer(known or name, shape)
    return Tensor(name, role, layer, shape)
