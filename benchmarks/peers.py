"""One of sentence-transformers' own engines for engines.py, in the environment of engines.txt, where tierexport is not.

Called as `python peers.py ENGINE MODEL FOLDER THREADS`, ENGINE being "ONNX fp32" or the like: exports the model into FOLDER,
where texts.json has texts to calibrate on, and answers with the export's bytes. Each line on stdin is then a file of texts in
JSON, and each answer the seconds that they took; their vectors lie beside the file, as .npy.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def onnx(model: str, folder: Path, threads: int, int8: bool) -> Any:
    """Exported and, for int8, quantized for the kernels that this machine has: weights once, inputs as they come."""
    import onnxruntime
    import torch
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    settings: dict[str, Any] = {"provider": "CPUExecutionProvider", "session_options": options}
    opened = SentenceTransformer(model, device="cpu", backend="onnx", model_kwargs={**settings, "export": True})
    if not int8:
        opened.save_pretrained(str(folder))
        return opened
    kernels = "avx512_vnni" if torch.cpu.get_capabilities().get("avx512_vnni") else "avx2"
    opened.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(opened, kernels, str(folder))
    (folder / "onnx" / "model.onnx").unlink()
    settings["file_name"] = f"onnx/model_qint8_{kernels}.onnx"
    return SentenceTransformer(str(folder), device="cpu", backend="onnx", model_kwargs=settings)


def openvino(model: str, folder: Path, threads: int, int8: bool) -> Any:
    """Exported and, for int8, quantized at its backend's defaults, weights and inputs once, by our calibration texts."""
    from sentence_transformers import SentenceTransformer

    settings = {"ov_config": {"INFERENCE_NUM_THREADS": threads}}
    opened = SentenceTransformer(model, device="cpu", backend="openvino", model_kwargs={**settings, "export": True})
    opened.save_pretrained(str(folder))
    if not int8:
        return opened
    quantize(opened, folder)
    return SentenceTransformer(str(folder), device="cpu", backend="openvino", model_kwargs=settings)


def quantize(opened: Any, folder: Path) -> None:
    """As `export_static_quantized_openvino_model` does, which takes no texts but a hub's; the fp32 files are replaced."""
    import nncf
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer

    texts = json.loads((folder / "texts.json").read_text("utf-8"))
    inputs = [
        dict(opened.tokenizer(text, truncation=True, max_length=opened.max_seq_length, return_tensors="np")) for text in texts
    ]
    config = OVConfig(quantization_config=OVQuantizationConfig())
    OVQuantizer.from_pretrained(opened[0].auto_model).quantize(nncf.Dataset(inputs), folder, config)


def main(engine: str, model: str, folder: Path, threads: int, lines: Iterable[str]) -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        backend, kind = engine.split()
        opened = {"ONNX": onnx, "OpenVINO": openvino}[backend](model, folder, threads, kind == "int8")
        files = folder.glob(f"{backend.lower()}/*model*.*")
        print(sum(file.stat().st_size for file in files), file=answers, flush=True)
        for line in lines:
            path = Path(line.rstrip("\n"))
            texts = json.loads(path.read_text("utf-8"))
            began = time.perf_counter()
            vectors = opened.encode(texts)
            seconds = time.perf_counter() - began
            np.save(path.with_suffix(".npy"), vectors)
            print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.stdin)
