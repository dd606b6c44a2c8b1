"""The formats there are: where the object of each is defined. A format is registered by a line here."""

FORMATS: dict[str, str] = {
    "gguf": "tierexport.formats.gguf.format:Gguf",
    "torchao": "tierexport.formats.torchao.format:Torchao",
}
"""By the name that recipes, manifests and reports have for it. The module is imported when the format is asked for."""
