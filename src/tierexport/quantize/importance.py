"""Which inputs of each Linear matter: squared activations over real, prompt-prefixed texts.

Knows nothing of formats: importance is keyed by the Hugging Face names of the weights.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from tierexport.base.errors import CalibrationError
from tierexport.base.records import Importance, Text
from tierexport.model.batches import batches, prompted, real_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def measure_importance(
    model: "SentenceTransformer", texts: Sequence[Text], dataset: str, progress: Callable[[int], None] = lambda _: None
) -> Importance:
    """Sum of squared inputs of every Linear over `texts`, padding left out, in float64.

    `progress`: called with the number of texts done since the last call. Raises CalibrationError when no token reaches a
    Linear.
    """
    observer = _Observer()
    with observer.attached(model.transformers_model), torch.inference_mode():
        for batch in batches(model, prompted(model.prompts, texts)):
            observer.mask = batch.mask
            model(dict(batch.features))
            progress(len(batch.rows))
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
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.mask: Any = None

    def attached(self, model: torch.nn.Module) -> ExitStack:
        """A context in which every Linear of the model is watched."""
        stack = ExitStack()
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
