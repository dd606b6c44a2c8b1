"""The tensors of a model by its module tree, remembered per model: what finds them takes torch, which is slow to import."""

import json
from dataclasses import asdict
from pathlib import Path

from tierexport.base.archive import tools
from tierexport.base.files import write_json
from tierexport.base.records import Source, Tensor
from tierexport.base.stages import stage_key
from tierexport.model.stages import source_stages

_FILE = "layout.json"


def read_tensors(source: Source) -> tuple[Tensor, ...]:
    """Every tensor of the module tree and of the modules after it. Raises SourceError."""

    def write(out: Path) -> None:
        from tierexport.formats.torchao.tree import tensors

        write_json(out / _FILE, [asdict(each) for each in tensors(source)])

    folder = source_stages(source).run("torchao-layout", stage_key("tierexport.formats.torchao.tree", tools()), write)
    listed = json.loads((folder / _FILE).read_text("utf-8"))
    return tuple(Tensor(**{**each, "shape": tuple(each["shape"]), "sources": tuple(each["sources"])}) for each in listed)
