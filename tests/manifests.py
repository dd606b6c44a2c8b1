"""Manifests of artifacts that were never built."""

from collections.abc import Mapping
from typing import Any

from tierexport.artifact.manifest import VERSION, Manifest


def manifest_of(paths: Mapping[str, str], licence: str | None = "mit", revision: str | None = None, **more: Any) -> Manifest:
    """Of artifacts by format at these paths; `more` are keys of the whole."""
    terms = {"licence": licence, "licences": [licence] if licence else [], "licence_name": None, "licence_link": None}
    model: dict[str, Any] = {
        "spec": "org/tiny", "name": "tiny", "base_model": "org/tiny", "revision": revision, "digest": "0", **terms,
        "pooling": "mean", "max_tokens": 128, "prompts": {}, "languages": ["en"], "similarity": "cosine", "note": None,
        "modules": ["Transformer", "Pooling", "Normalize"],
    }  # fmt: skip
    recipe = {
        "name": "int8", "description": "", "rounding": "nearest", "torchao": {"layout": "portable", "group_size": 32},
        "calibration": None, "rounding_texts": None,
    }  # fmt: skip
    sizes = {"parameters": 1, "tensor_bytes": 1, "bytes": 1000, "nominal_bits": 8.0, "tensor_bits": 8.0, "stored_bits": 8.5}
    return Manifest.from_json({
        "version": VERSION, "model": model, "recipe": recipe, "conversion": None, "texts": [], "vectors": None,
        "tools": {"tierexport": "0", "llama.cpp": "0"},
        "artifacts": [{"format": kind, "path": path, **sizes, "tensors": []} for kind, path in paths.items()],
        **more,
    })  # fmt: skip
