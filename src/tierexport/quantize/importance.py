"""Which inputs of each Linear matter: squared activations over real, prompt-prefixed texts.

Knows nothing of formats: importance is keyed by the Hugging Face names of the weights.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.base.errors import CalibrationError
from tierexport.base.records import Floats, Importance, Text
from tierexport.model.batches import length_sorted, prompt_for, real_rows, token_ids

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def measure_importance(
    model: "SentenceTransformer", texts: Sequence[Text], dataset: str, step: Callable[[int], None] = lambda _: None
) -> Importance:
    """Sum of squared inputs of every Linear over `texts`, padding left out, in float64.

    `step` hears how many texts were done. Raises CalibrationError when no token reaches a Linear.
    """
    import torch

    prompted = [prompt_for(model.prompts, text.kind) + text.text for text in texts]
    lengths = [len(ids) for ids in token_ids(model, prompted)]
    observer = _Observer()
    with observer.attached(model.transformers_model), torch.inference_mode():
        for batch in length_sorted(lengths):
            features = model.preprocess([prompted[index] for index in batch])
            observer.mask = features["attention_mask"].bool()
            model(features)
            step(len(batch))
    if not observer.sums:
        raise CalibrationError("no Linear of the model saw a token: are the calibration texts empty?")
    return Importance(
        sums={f"{name}.weight": total.numpy() for name, total in sorted(observer.sums.items())},
        counts={f"{name}.weight": rows for name, rows in sorted(observer.counts.items())},
        texts=len(texts),
        dataset=dataset,
    )


class _Observer:
    """Hooks on every Linear; `mask` marks the real tokens of the batch that is running."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.mask: Any = None

    def attached(self, model: Any) -> Any:
        """A context in which every Linear of the model is watched."""
        import contextlib

        import torch

        stack = contextlib.ExitStack()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                handle = module.register_forward_pre_hook(self._hook(name))
                stack.callback(handle.remove)
        return stack

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def watch(_: Any, inputs: tuple[Any, ...]) -> None:
            rows = real_rows(inputs[0], self.mask).double()
            squared = rows.square().sum(0)
            self.sums[name] = self.sums[name] + squared if name in self.sums else squared
            self.counts[name] = self.counts.get(name, 0) + len(rows)

        return watch


def floored(means: Floats) -> Floats:
    """Importance with its zeros lifted to a millionth of the mean, or to 1 where all is zero.

    ggml turns a block whose importance is zero throughout into zero weights (Q4_0, Q5_0, Q2_K to
    Q6_K, the IQ4 types); an input that no calibration text used is rare, not impossible. What has
    been floored is returned as it is, so that doing it twice changes no bit.
    """
    floor = means.mean(dtype=np.float64) * 1e-6
    if not floor > 0:
        return np.ones_like(means)
    return means if means.min() >= floor / 2 else np.maximum(means, np.float32(floor))
