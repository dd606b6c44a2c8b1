"""Whether the unquantized GGUF, through llama.cpp, is the model: token ids and vectors of probe texts equal fp32's.

Asked before anything is quantized: rounding would hide what went wrong, and take long to do it.
"""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from tierexport.artifact.verdicts import Conversion, ProbeVerdict
from tierexport.base.archive import tools
from tierexport.base.digests import file_digest
from tierexport.base.errors import ConversionError
from tierexport.base.files import write_json
from tierexport.base.records import Source
from tierexport.base.stages import stage_key
from tierexport.formats.protocol import Format
from tierexport.model.reference import Reference
from tierexport.model.stages import source_stages
from tierexport.verify.opened import Judged, OpenArtifact
from tierexport.verify.probes import probes
from tierexport.verify.probing import ask_probes

LEAST_COSINE = 0.9999
"""What an unquantized conversion has to reach on each probe; where it is right, it comes out at 0.99999 and more."""

DESPITE = "conversion"
"""The name by which a user builds in spite of it."""

PROBES_FILE = "probes.json"


def check_conversion(fmt: Format, file: Path, reference: Reference) -> Conversion:
    """What a format's program makes of the unquantized artifact on the probes, from the cache or found out now.

    Raises ArtifactError where it can't load or run the file at all.
    """
    source = reference.source
    asked = probes(source, reference.max_tokens)

    def ask(folder: Path) -> None:
        with closing(OpenArtifact(Judged(fmt.name, file), "cpu", reference)) as artifact:
            write_json(folder / PROBES_FILE, [asdict(each) for each in ask_probes(artifact, asked)])

    key = stage_key(__name__, [asdict(each) for each in asked], reference.max_tokens, file_digest(file), tools())
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
