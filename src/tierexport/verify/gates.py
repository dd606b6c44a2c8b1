"""Gates: what an artifact has to reach before it counts as verified."""

import operator
from collections.abc import Callable, Sequence

from tierexport.records import RETRIEVAL_GATES, Gate
from tierexport.verdicts import GateResult, Verdict

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


def judge(gates: Sequence[Gate], verdicts: Sequence[Verdict]) -> tuple[GateResult, ...]:
    """Every gate on every artifact that ran. A gate with nothing to judge has not been passed."""
    return tuple(
        GateResult(str(gate), verdict.format, verdict.device, value, gate.limit, value is not None and _holds(gate, value))
        for gate in gates
        for verdict in verdicts
        if verdict.status == "ok"
        for value in _values(gate.metric, verdict)
    )


def _holds(gate: Gate, value: float) -> bool:
    return _COMPARE[gate.comparison](value, gate.limit)


def _values(metric: str, verdict: Verdict) -> list[float | None]:
    """The metric's value on the fidelity texts, or on each retrieval set; None where it was not measured."""
    if metric in RETRIEVAL_GATES:
        return [getattr(each, RETRIEVAL_GATES[metric]) for each in verdict.retrieval] or [None]
    return [verdict.tokens_share if metric == "tokens_share" else getattr(verdict.fidelity, metric)]
