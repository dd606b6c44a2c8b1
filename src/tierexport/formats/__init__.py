"""The artifacts' formats: what a tier means in each, and how one is written and opened."""

from tierexport.formats.gguf import GgufFormat
from tierexport.formats.torchao import TorchaoFormat
from tierexport.records import Format

FORMATS: dict[str, Format] = {"gguf": GgufFormat(), "torchao": TorchaoFormat()}
