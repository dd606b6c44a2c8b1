"""Export text-embedding models to GGUF and torchao in tiers, and prove what they are worth."""

__version__ = "0.1.0"


def load(path: str, device: str = "cpu"):  # type: ignore[no-untyped-def]  # keeps torch out of `import tierexport`
    """Open a GGUF or a torchao folder as a `SentenceTransformer`: for `encode`, evaluators, mteb, LangChain.

    A GGUF runs in llama.cpp inside this process, on a GPU where `device` is "cuda" and llama.cpp was built for it. A
    packed torchao folder runs through its 4-bit kernels where this machine has them, and through dequantized weights
    elsewhere. Raises `ArtifactError` when there is no such artifact, or it can't be loaded.
    """
    from tierexport.formats.loading import load as load_artifact

    return load_artifact(path, device)
