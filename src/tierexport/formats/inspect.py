"""What a file, a folder or a hub's repository really holds, anybody's: native types by layer, bits, metadata, warnings.

Headers and small JSON files are read and nothing else, so on a hub no weights are downloaded.
"""

from pathlib import Path, PurePosixPath

from tierexport.artifact.folder import CODEC
from tierexport.artifact.manifest import MANIFEST
from tierexport.base.errors import ArtifactError
from tierexport.base.hub import is_hub_id
from tierexport.base.listing import Listing, hub_listing, local_listing
from tierexport.formats import all_formats, by_suffix
from tierexport.formats.artifacts import artifacts_at
from tierexport.formats.header import Room
from tierexport.formats.inspection import Inspection
from tierexport.formats.protocol import Format

MOST_FILES = 64
"""Files with weights that are shown."""


def inspect(target: str | Path) -> tuple[Inspection, ...]:
    """Everything at a path, or in a hub's ORG/NAME[@REVISION][:FILE] where no such path exists.

    Raises ArtifactError when there is nothing to show or something is damaged, MachineError when the
    hub can't be reached or sends whole files only.
    """
    room = Room()
    return tuple(fmt.inspect(listing, names, room) for listing in _listings(str(target)) for fmt, names in _artifacts(listing))


def _listings(target: str) -> list[Listing]:
    """The folder, file or repository that is asked for; of a folder that tierexport built its artifacts."""
    path = Path(target)
    if not path.exists() and is_hub_id(target.partition(":")[0]):
        return [hub_listing(target)]
    if path.is_dir() and not (path / MANIFEST).is_file():
        return [local_listing(path)]
    return [local_listing(place) for _, place in artifacts_at(path)]


def _artifacts(listing: Listing) -> list[tuple[Format, tuple[str, ...]]]:
    """The artifacts in a listing, each as its format and the files that belong to it; in the order of their first files.

    Raises ArtifactError when there are none, or too many files.
    """
    if listing.alone:
        (name,) = listing.files
        return [(by_suffix(name), (name,))]
    weights = {fmt.name: _weights(listing, fmt) for fmt in all_formats()}
    if (count := sum(map(len, weights.values()))) > MOST_FILES:
        raise ArtifactError(f"{listing.name} holds {count} files with weights, and {MOST_FILES} are shown: name one of them")
    if not count:
        kinds = " and no ".join(f"*{fmt.suffix}" for fmt in all_formats())
        raise ArtifactError(f"{listing.name} holds no {kinds}: name a folder, a file or a repository with some")
    found = [(fmt, names) for fmt in all_formats() for names in fmt.together(listing, weights[fmt.name])]
    return sorted(found, key=lambda each: each[1][0])


def _weights(listing: Listing, fmt: Format) -> list[str]:
    """The weight files of a format, sorted; how vectors are stored is no weight."""
    return sorted(name for name in listing.files if name.endswith(fmt.suffix) and PurePosixPath(name).name != CODEC)
