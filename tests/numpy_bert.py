"""BERT's encoder in numpy, written from the paper's equations: what its Linear layers are given.

Independent of torch, transformers and of tierexport's hooks, to compare them with.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.special import erf

Array = npt.NDArray[np.float64]


class NumpyBert:
    """Weights in float64; one text at a time, so there is no padding."""

    def __init__(self, folder: Path, layers: int, heads: int) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
        self.layers, self.heads = layers, heads

    def linear(self, name: str, x: Array) -> Array:
        product: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return product

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        shifted: Array = scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return shifted

    def inputs(self, ids: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
        """(name of a Linear, its input of shape (tokens, columns)), layer by layer."""
        tables = "embeddings.{}_embeddings.weight"
        x = self.weights[tables.format("word")][list(ids)] + self.weights[tables.format("position")][: len(ids)]
        x = self.norm("embeddings.LayerNorm", x + self.weights[tables.format("token_type")][0])
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}"
            for part in ("query", "key", "value"):
                yield f"{prefix}.attention.self.{part}", x
            context = self.attention(prefix, x)
            yield f"{prefix}.attention.output.dense", context
            x = self.norm(f"{prefix}.attention.output.LayerNorm", x + self.linear(f"{prefix}.attention.output.dense", context))
            yield f"{prefix}.intermediate.dense", x
            up = self.linear(f"{prefix}.intermediate.dense", x)
            up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
            yield f"{prefix}.output.dense", up
            x = self.norm(f"{prefix}.output.LayerNorm", x + self.linear(f"{prefix}.output.dense", up))

    def attention(self, prefix: str, x: Array) -> Array:
        query, key, value = (
            self.linear(f"{prefix}.attention.self.{part}", x).reshape(len(x), self.heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed: Array = (weights / weights.sum(-1, keepdims=True)) @ value
        return mixed.transpose(1, 0, 2).reshape(len(x), -1)
