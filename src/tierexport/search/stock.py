"""llama.cpp's own choice of types, to compare with."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tierexport.base.errors import PlanError
from tierexport.base.records import Imatrix


def quantize_stock(fp32: Path, native: str, imatrix: Imatrix, out: Path) -> None:
    """What llama-quantize makes of a file with this importance, by the llama.cpp that llama-cpp-python carries.

    Raises PlanError when llama.cpp refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job, log = Path(scratch) / "job.json", Path(scratch) / "log"
        job.write_text(json.dumps({"fp32": str(fp32), "type": native, "imatrix": str(imatrix.path), "out": str(out)}))
        with log.open("wb") as output:
            command = [sys.executable, "-m", "tierexport.search.stock_worker", str(job)]
            code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
        if code:
            lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
            raise PlanError(f"llama.cpp can't quantize to {native}: {lines[-1] if lines else f'it ended with code {code}'}")
