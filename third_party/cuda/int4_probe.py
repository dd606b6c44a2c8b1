"""Tries mslk's 4-bit kernel on this GPU at one group size: `int4_probe.py GROUP`; exits 1 where it does not do.

CUTLASS refuses groups that are no multiple of the kernel's tile, and which tile that is differs from
release to release, so it is asked.
"""

import sys

import torch

from tierexport.base.libraries import import_sentence_transformers
from tierexport.formats.torchao.int4 import unpack_int4
from tierexport.formats.torchao.pack import pack_int4

ROWS, COLUMNS, TEXTS = 1536, 384, 64
LARGEST_ERROR = 0.02
"""Relative; bfloat16 inputs and outputs alone cost up to 0.01."""


def probe(group: int) -> float:
    """Relative error of the kernel's product to that of the same weights in float32."""
    generator = torch.Generator().manual_seed(0)
    packed = pack_int4(torch.randn(ROWS, COLUMNS, generator=generator), group)
    texts = torch.randn(TEXTS, COLUMNS, generator=generator).bfloat16()
    expected = texts.float() @ unpack_int4(packed).T
    found = torch.nn.functional.linear(texts.cuda(), packed.cuda()).float().cpu()
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    import_sentence_transformers()
    try:
        error = probe(int(sys.argv[1]))
    except Exception as refusal:
        sys.stdout.write(f"not run: {type(refusal).__name__}: {str(refusal).splitlines()[0]}\n")
        sys.exit(1)
    sys.stdout.write(f"relative error {error:.1e}\n")
    sys.exit(error > LARGEST_ERROR or error != error)
