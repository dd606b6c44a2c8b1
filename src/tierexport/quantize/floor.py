"""A floor under importance, so that no input counts for nothing."""

import numpy as np

from tierexport.base.records import Floats

FLOOR = 1e-6
"""Share of the mean importance below which no input's falls."""


def floored(means: Floats) -> Floats:
    """Importance, float32 (columns,), with its zeros lifted to a millionth of the mean, or to 1 where all is zero.

    ggml turns a block whose importance is zero throughout into zero weights (Q4_0, Q5_0, Q2_K to
    Q6_K, the IQ4 types); an input that no calibration text used is rare, not impossible. What has
    been floored is returned as it is, so that doing it twice changes no bit.
    """
    floor = means.mean(dtype=np.float64) * FLOOR
    if not floor > 0:
        return np.ones_like(means)
    return means if means.min() >= floor / 2 else np.maximum(means, np.float32(floor))
