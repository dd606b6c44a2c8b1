"""What a file, a folder or a hub's repository really holds, anybody's: native types by layer, bits, metadata, warnings.

Headers and small JSON files are read and nothing else, so on a hub no weights are downloaded.
"""

from pathlib import Path, PurePosixPath

from tierexport.artifact.folder import CODEC, IMATRIX
from tierexport.base.errors import ArtifactError
from tierexport.base.hub import is_hub_id
from tierexport.base.listing import Listing, hub_listing, local_listing
from tierexport.formats import all_formats, by_suffix
from tierexport.formats.header import Room
from tierexport.formats.inspection import Inspection
from tierexport.formats.protocol import Format

MOST_FILES = 64
"""Files with weights that are shown."""

_NO_WEIGHTS = (CODEC, IMATRIX)


def inspect(target: str | Path) -> tuple[Inspection, ...]:
    """Everything at a path, or in a hub's ORG/NAME[@REVISION][:FILE] where no such path exists.

    Raises ArtifactError when there is nothing to show or something is damaged, MachineError when the
    hub can't be reached or sends whole files only.
    """
    room, listing = Room(), _listing(str(target))
    return tuple(fmt.inspect(listing, names, room) for fmt, names in _artifacts(listing))


def _listing(target: str) -> Listing:
    """The folder, file or repository that is asked for."""
    path = Path(target)
    on_hub = not path.exists() and is_hub_id(target.partition(":")[0])
    return hub_listing(target) if on_hub else local_listing(path)


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
    """The weight files of a format, sorted; how vectors are stored is no weight, nor is the importance of weights."""
    return sorted(name for name in listing.files if name.endswith(fmt.suffix) and PurePosixPath(name).name not in _NO_WEIGHTS)
