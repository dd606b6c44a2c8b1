"""What became of probe texts: an artifact's token ids and vectors beside fp32's."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tierexport.artifact.verdicts import ProbeVerdict
from tierexport.base.records import Encoded
from tierexport.metrics.similarity import cosines
from tierexport.verify.fidelity import same_tokens
from tierexport.verify.opened import OpenArtifact
from tierexport.verify.probes import Probe, by_kind


def ask_probes(artifact: OpenArtifact, asked: Sequence[Probe]) -> tuple[ProbeVerdict, ...]:
    """What an artifact makes of each probe. Raises ArtifactError where it fails."""
    texts = by_kind(asked)
    expected = {kind: artifact.reference.encode("probes", kind, each) for kind, each in texts.items()}
    found = {kind: artifact.encode("probes", kind, each) for kind, each in texts.items()}
    return judge(asked, expected, found)


def judge(asked: Sequence[Probe], reference: Mapping[str, Encoded], found: Mapping[str, Encoded]) -> tuple[ProbeVerdict, ...]:
    """What became of each probe; vectors and tokens by kind, each in the order of `by_kind`."""
    return tuple(
        verdict
        for kind in reference
        for verdict in _judge([probe for probe in asked if probe.kind == kind], reference[kind], found[kind])
    )


def _judge(asked: Sequence[Probe], reference: Encoded, found: Encoded) -> Iterator[ProbeVerdict]:
    near = cosines(np.asarray(reference.vectors), np.asarray(found.vectors))
    for row, (probe, same) in enumerate(zip(asked, same_tokens(reference, found), strict=True)):
        ours, theirs = reference.ids(row), found.ids(row)
        yield ProbeVerdict(
            name=probe.name,
            text=probe.text if len(probe.text) <= 100 else f"{probe.text[:97]}…",
            tokens_equal=bool(same),
            cosine=float(near[row]),
            required=probe.required,
            cause=probe.cause,
            parting="" if same else _parting(ours, theirs),
        )


def _parting(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Both lists of ids around the first place where they part."""
    first = next(
        (at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs))
    )
    start = max(first - 2, 0)
    shown = [[*("…" * (start > 0)), *ids[start : first + 6], *("…" * (len(ids) > first + 6))] for ids in (ours, theirs)]
    told = ["[" + ", ".join(map(str, ids)) + "]" for ids in shown]
    return f"from token {first + 1} of {len(ours)} on: {told[0]} in sentence-transformers, {told[1]} in llama.cpp"
