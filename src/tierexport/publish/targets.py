"""Opens what --to names; one file per kind of place."""

from collections.abc import Callable, Mapping

from tierexport.base.errors import PublishError
from tierexport.base.hub import is_hub_id
from tierexport.base.paths import expanded
from tierexport.publish.directory import Directory
from tierexport.publish.huggingface import HuggingFace
from tierexport.publish.modelscope import ModelScope
from tierexport.publish.protocol import Target

HUBS: Mapping[str, Callable[[str, str | None, bool], Target]] = {"hf": HuggingFace, "modelscope": ModelScope}
"""Hubs by what comes before the colon; each takes ORG/NAME, a revision, and whether a new repository is private."""


def open_target(name: str, revision: str | None, private: bool, create_pr: bool = False) -> Target:
    """The place that "hf:ORG/NAME", "modelscope:ORG/NAME" or "dir:PATH" names. Raises PublishError."""
    kind, _, place = name.partition(":")
    if create_pr and kind != "hf":
        raise PublishError(f"--to {name}: pull requests are the Hugging Face hub's: leave out --create-pr")
    if kind == "dir" and place:
        if revision or private:
            raise PublishError(f"--to {name}: a folder has no --revision and is not --private")
        return Directory(expanded(place))
    if kind not in HUBS or not is_hub_id(place) or "@" in place:
        raise PublishError(f"--to {name!r} has to be hf:ORG/NAME, modelscope:ORG/NAME or dir:PATH")
    return HuggingFace(place, revision, private, create_pr) if create_pr else HUBS[kind](place, revision, private)
