"""Gates as recipes write them: `top10_retention >= 0.97`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tierexport.base.errors import RecipeError
from tierexport.base.validation import nearest

FIDELITY_GATES = ("tokens_share", "cos_mean", "cos_p1", "cos_min", "top10_retention", "rank_correlation", "relative_error")
"""What a gate may be about: figures of a verdict, by their names there."""

RETRIEVAL_GATES = {
    "ndcg_at_10": "ndcg_at_10",
    "recall_at_10": "recall_at_10",
    "mrr_at_10": "mrr_at_10",
    "ndcg_delta": "delta",
    "ndcg_delta_ci_low": "ci_low",
}
"""What else a gate may be about: figures of each of a verdict's retrieval sets, by their names there."""

STORED = "stored_"
"""Begins a gate that is about the vectors as they are stored, quantized."""

_GATE = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """A limit that an artifact has to keep: `top10_retention >= 0.97`."""

    metric: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.limit:g}"


def parse_gate(text: str) -> Gate:
    """A gate from its text. Raises ValueError that says what is wrong with it."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} has to be METRIC >= NUMBER or METRIC <= NUMBER, as "cos_mean >= 0.99"')
    known = (*FIDELITY_GATES, *RETRIEVAL_GATES)
    if found[1].removeprefix(STORED) not in known:
        raise ValueError(f"{found[1]!r} is not measured{nearest(found[1], known)}")
    return Gate(found[1], found[2], float(found[3]))


def check_measured(gates: Iterable[Gate], retrieval: bool, stored: bool) -> None:
    """Raises RecipeError for a gate that nothing will be measured for: `retrieval`, whether there are retrieval sets;
    `stored`, whether vectors are stored quantized.
    """
    for gate in gates:
        if gate.metric.startswith(STORED) and not stored:
            raise RecipeError(f"the gate {gate} is about quantized vectors, and there are none: set vectors.level")
        if gate.metric.removeprefix(STORED) in RETRIEVAL_GATES and not retrieval:
            raise RecipeError(f"the gate {gate} takes a retrieval set, and none is named: set verify.data")
