"""Gates: what an artifact has to reach before it counts as verified."""

import operator
from collections.abc import Callable, Iterator, Sequence

from tierexport.artifact.verdicts import GateResult, Verdict
from tierexport.recipe.gates import RETRIEVAL_GATES, STORED, Gate

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


def judge(gates: Sequence[Gate], verdicts: Sequence[Verdict]) -> tuple[GateResult, ...]:
    """Every gate on every artifact that ran, on its vectors as they come or, where the gate says so, as they are stored.

    A gate with nothing to judge has not been passed.
    """
    ran = [verdict for verdict in verdicts if verdict.status == "ok"]
    return tuple(
        GateResult(str(gate), verdict.format, verdict.device, value, gate.limit, value is not None and _holds(gate, value))
        for gate in gates
        for verdict in _subjects(gate, ran)
        for value in _values(gate.metric.removeprefix(STORED), verdict)
    )


def _subjects(gate: Gate, ran: Sequence[Verdict]) -> Iterator[Verdict]:
    """The verdicts that a gate is about; where vectors were not stored, verdicts without a figure."""
    stored = gate.metric.startswith(STORED)
    for verdict in ran:
        if bool(verdict.vectors) == stored:
            yield verdict
        elif stored and not any(each.vectors for each in ran):
            yield Verdict(verdict.format, verdict.device, verdict.status)


def _holds(gate: Gate, value: float) -> bool:
    return _COMPARE[gate.comparison](value, gate.limit)


def _values(metric: str, verdict: Verdict) -> list[float | None]:
    """The metric's value on the fidelity texts, or on each retrieval set; None where it was not measured."""
    if metric in RETRIEVAL_GATES:
        return [getattr(each, RETRIEVAL_GATES[metric]) for each in verdict.retrieval] or [None]
    if metric == "tokens_share":
        return [verdict.tokens_share]
    return [getattr(verdict.fidelity, metric) if verdict.fidelity else None]
