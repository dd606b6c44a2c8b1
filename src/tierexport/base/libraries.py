"""Imports the heavy libraries without the noise they print: users see tierexport's own messages only."""

import importlib.util
import logging
import os
import warnings
from typing import Any

from tierexport.base.errors import MachineError
from tierexport.base.memory import give_back_large_blocks

_NOISY = ("torchao", "torch.utils._pytree", "sentence_transformers", "transformers")


def need(library: str, extra: str, purpose: str) -> None:
    """Raise MachineError where an optional library is not installed, with the extra of tierexport that brings it."""
    if importlib.util.find_spec(library) is None:
        raise MachineError(f'{purpose} takes {library}, which is not installed: pip install "tierexport[{extra}]"')


def import_faiss() -> Any:
    """faiss, which only searching vectors takes. Raises MachineError where it is not installed."""
    need("faiss", "faiss", "searching binary vectors, or an index of faiss's,")
    import faiss

    return faiss


def import_sentence_transformers() -> Any:
    """sentence_transformers, with transformers and torchao, imported in silence.

    torchao reports extensions built for other machines, torch a change inside torchao,
    transformers draws bars: none is about the user's model.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    give_back_large_blocks()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sentence_transformers
        import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return sentence_transformers
