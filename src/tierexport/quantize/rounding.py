"""Rounds matrices by error feedback and coordinate descent: compiled on a CPU, by torch on a GPU."""

from collections.abc import Sequence

from tierexport.quantize.codes import Codes
from tierexport.quantize.compiled_gptq import compiled_gptq
from tierexport.quantize.gptq import Request, gptq


def round_matrices(requests: Sequence[Request]) -> list[Codes]:
    """The codes of matrices, all on one device, each onto its grid, whose blocks divide its columns."""
    if requests and requests[0].weight.device.type == "cpu":
        return compiled_gptq(requests)
    return [gptq(request) for request in requests]
