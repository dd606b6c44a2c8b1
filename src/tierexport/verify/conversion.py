"""Whether the unquantized GGUF, through llama.cpp, is the model: token ids and vectors of probe texts equal fp32's.

Asked before anything is quantized: rounding would hide what went wrong, and take long to do it.
"""

import json
from dataclasses import asdict
from pathlib import Path

from tierexport.archive import tools
from tierexport.errors import ConversionError
from tierexport.formats.gguf import converted, source_stages
from tierexport.records import Source
from tierexport.verdicts import Conversion, ProbeVerdict
from tierexport.verify.kept import Judged, Reference, encode_artifact
from tierexport.verify.probes import by_kind, judge, probes
from tierexport.workdir import file_digest, stage_key, write_json

LEAST_COSINE = 0.9999
"""What an unquantized conversion has to reach on each probe; where it is right, it comes out at 0.99999 and more."""

DESPITE = "conversion"
"""The name by which a user builds in spite of it."""

PROBES_FILE = "probes.json"


def check_conversion(source: Source, reference: Reference) -> Conversion:
    """What llama.cpp makes of the converted model on the probes, from the cache or found out now.

    Raises ArtifactError where llama.cpp can't load or run the file at all.
    """
    file = converted(source)
    asked = probes(source, reference.max_tokens)

    def ask(folder: Path) -> None:
        artifact = Judged("gguf", file)
        texts = by_kind(asked)
        expected = {kind: reference.encode("probes", kind, each) for kind, each in texts.items()}
        found = {kind: encode_artifact(artifact, "cpu", reference, "probes", kind, each) for kind, each in texts.items()}
        write_json(folder / PROBES_FILE, [asdict(each) for each in judge(asked, expected, found)])

    key = stage_key([asdict(each) for each in asked], reference.max_tokens, file_digest(file), tools())
    folder = source_stages(source).run("conversion", key, ask)
    listed = json.loads((folder / PROBES_FILE).read_text("utf-8"))
    return Conversion(tuple(ProbeVerdict(**each) for each in listed), LEAST_COSINE)


def refuse_failed(source: Source, found: Conversion) -> None:
    """Raises ConversionError naming a probe that came out otherwise, both lists of ids, and the likely cause."""
    if not found.failed:
        return
    first = found.failed[0]
    more = f" ({len(found.failed)} of {len(found.probes)} probes fail)" if len(found.failed) > 1 else ""
    raise ConversionError(
        f"llama.cpp does not make of {source.name} what the model is{more}. The probe {first.name!r}, {first.text!r}: "
        f"{told(first)}. --set 'formats=[\"torchao\"]' builds the format that has no such trouble; --despite {DESPITE} builds "
        "the GGUF in spite of it, and says so wherever it is shown"
    )


def told(probe: ProbeVerdict) -> str:
    """What was found of a probe that failed, and the likely cause."""
    if not probe.tokens_equal:
        return f"its tokens part {probe.parting}. Likely cause: {probe.cause}"
    return (
        f"its tokens are the same, but the cosine to fp32's vector is {probe.cosine:.5f}, below {LEAST_COSINE}. Likely cause: "
        "llama.cpp computes the layers otherwise (activation, norms, positions), or the converter read a weight wrongly"
    )
