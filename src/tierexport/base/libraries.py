"""Imports the heavy libraries without the noise they print: users see tierexport's own messages only."""

import logging
import os
import warnings
from typing import Any

from tierexport.base.errors import MachineError

_NOISY = ("torchao", "torch.utils._pytree", "sentence_transformers", "transformers")


def import_faiss() -> Any:
    """faiss, which only searching vectors takes. Raises MachineError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise MachineError("searching binary vectors, and faiss's indexes, take faiss: pip install faiss-cpu") from None
    return faiss


def import_sentence_transformers() -> Any:
    """sentence_transformers, with transformers and torchao, imported in silence.

    torchao reports extensions built for other machines, torch a change inside torchao,
    transformers draws bars: none is about the user's model.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
