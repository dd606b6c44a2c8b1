"""Opens a GGUF as a `SentenceTransformer`, so that evaluators, mteb and LangChain take it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierexport.base.errors import ArtifactError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.formats.gguf.header import read_gguf_header
from tierexport.formats.gguf.llama import LlamaFile
from tierexport.metrics.similarity import SIMILARITIES

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "default"
"""What the prompt is called that `encode` takes where none is asked for; most models have none."""


def load(path: Path, device: str) -> "SentenceTransformer":
    """llama.cpp runs in this process; texts are cut and prompted, vectors normalized and compared as the source model's,
    where the file says how.
    """
    with path.open("rb") as file:  # llama.cpp aborts on some damaged files, and this process with it
        read_gguf_header(file, path.stat().st_size, str(path))
    st = import_sentence_transformers()
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = LlamaFile(path, gpu=device.startswith("cuda"), quiet=True)
    prompts = {name: model.metadata(f"tierexport.prompt.{name}") or "" for name in ("query", "document", DEFAULT)}
    own = model.metadata("tierexport.normalize") == "0"  # a file that does not say has a model that is normalized
    similarity = model.metadata("tierexport.similarity")
    loaded: SentenceTransformer = st.SentenceTransformer(
        modules=[_module(model)] if own else [_module(model), Normalize()],
        prompts=prompts,
        default_prompt_name=DEFAULT if prompts[DEFAULT] else None,
        device="cpu",
        similarity_fn_name=similarity if similarity in SIMILARITIES else "cosine",
    )
    return loaded


def _module(model: LlamaFile) -> Any:
    """llama.cpp as the first module of a SentenceTransformer: from texts to pooled vectors."""
    import numpy as np
    import torch
    from sentence_transformers.base.modules.input_module import InputModule

    class Gguf(InputModule):  # type: ignore[misc]  # defined here, so that `import tierexport` stays light
        """Token ids in, one text at a time through llama.cpp, vectors out."""

        max_seq_length = int(model.metadata("tierexport.max_tokens") or model.trained_tokens)

        def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
            """Token ids (texts, tokens) and the mask of those that are no padding."""
            ids = [model.tokens((prompt or "") + str(text), self.max_seq_length) for text in inputs]
            longest = max(map(len, ids))
            return {
                "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
                "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
            }

        def forward(self, features: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
            """Adds "sentence_embedding", float32 (texts, dimensions)."""
            rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
            vectors = np.stack([model.vector(row[mask].tolist()) for row, mask in rows])
            return {**features, "sentence_embedding": torch.from_numpy(vectors)}

        def get_embedding_dimension(self) -> int:
            return model.dimensions

        def save(self, *_: Any, **__: Any) -> None:
            raise ArtifactError("a GGUF is a file of its own: copy it")

    return Gguf()
