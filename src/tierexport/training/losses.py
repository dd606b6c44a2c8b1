"""The losses of quantization-aware training, and the quantization that gradients pass through.

Straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): forward, vectors are what their codes stand for; backward,
the gradient is that of the vectors themselves, where they lie within the range.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from tierexport.vectors.codecs import TOP, Codec


@dataclass(frozen=True)
class Scored:
    """A batch's scores, divided by the temperature: the student's and fp32's, float32 (queries, passages) each, and the
    column of each query's own passage, int64 (queries,).
    """

    found: torch.Tensor
    expected: torch.Tensor
    own: torch.Tensor


def loss_of(scored: Scored, contrast: float) -> torch.Tensor:
    """The loss of a batch, a scalar: contrast · L_c + (1 - contrast) · L_d.

    L_c is the contrastive loss, the cross entropy of each query's own passage among those of the batch. L_d is the divergence
    KL(fp32 ‖ student) (Kullback and Leibler 1951) of the softmax over the batch's passages, averaged over queries; it needs no
    pairs to be right and keeps what the model knew.
    """
    contrastive = functional.cross_entropy(scored.found, scored.own)
    ours, theirs = (functional.log_softmax(each, 1) for each in (scored.found, scored.expected))
    divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return contrast * contrastive + (1 - contrast) * divergence


def straight_through(vectors: torch.Tensor, codec: Codec) -> torch.Tensor:
    """What the codes of vectors, brought to unit length, stand for, again of unit length: float32 (vectors, dimensions)."""
    unit = functional.normalize(vectors)
    low, high = (torch.from_numpy(each).to(unit.device) for each in (codec.low, codec.high))
    inside = unit.clamp(low, high)
    return functional.normalize(inside + (_decoded(unit, codec) - inside).detach())


def _decoded(unit: torch.Tensor, codec: Codec) -> torch.Tensor:
    """What the cells of values stand for, float32 (vectors, dimensions)."""
    if codec.table is not None:
        borders, centers = (torch.from_numpy(each).to(unit.device) for each in (codec.table.borders, codec.table.centers))
        return centers.T.gather(0, (unit.unsqueeze(2) > borders).sum(2))
    arrays = (codec.low, codec.high, codec.cells, *codec.line)
    low, high, cells, scale, offset = (torch.from_numpy(each).to(unit.device) for each in arrays)
    if codec.level == "binary":
        return (unit > (low + high) / 2) * scale + offset
    return ((unit - low) / cells).floor().clamp(0, TOP[codec.level]) * scale + offset
