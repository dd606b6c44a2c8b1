"""Export text-embedding models to GGUF and torchao in tiers, and prove what they are worth."""

__version__ = "0.1.0"


def load(path: str, device: str = "cpu"):  # type: ignore[no-untyped-def]  # keeps torch out of `import tierexport`
    """Open a torchao folder written by tierexport as a `SentenceTransformer`, on any device.

    A packed folder runs through its 4-bit kernels where this machine has them, and through
    dequantized weights elsewhere. Raises `ArtifactError` when the folder is not such an artifact.
    """
    from tierexport.formats.torchao import load as load_torchao

    return load_torchao(path, device)
