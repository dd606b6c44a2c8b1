"""Quantizes a GGUF as llama-quantize does, in a subprocess, so that a crash is reported and the rest goes on.

Called as `python -m … JOB.json`. The job names the unquantized file, an imatrix file, the file type (by llama.cpp's name), and
the output.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from tierexport.formats.gguf.imatrix import read_imatrix


def main(job_file: str) -> None:
    """Run one job; ends with another code than 0 when llama.cpp refuses."""
    import llama_cpp

    job = json.loads(Path(job_file).read_text("utf-8"))
    means = {
        name: np.ascontiguousarray(values, np.float32) for name, values in read_imatrix(Path(job["imatrix"])).means.items()
    }
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last, without a name, ends the list
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{job['type']}")
    settings.imatrix = entries
    llama_cpp.llama_backend_init()
    code = llama_cpp.llama_model_quantize(job["fp32"].encode(), job["out"].encode(), ctypes.byref(settings))
    if code:
        raise SystemExit(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    main(sys.argv[1])
