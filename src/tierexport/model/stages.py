"""Where what is made of a model is kept, for every recipe that names it."""

from tierexport.base.paths import cache_dir
from tierexport.base.records import Source
from tierexport.base.stages import Stages


def source_stages(source: Source) -> Stages:
    """The stages that every recipe for one model shares."""
    return Stages(cache_dir() / "models" / f"{source.name}-{source.digest[:16]}")
