"""Stages that are done once, and again only for other inputs or other code.

Knows nothing of models. A stage is a folder made by one function from inputs that a key digests:
it is written beside its place, synced, renamed, and recorded with the digest of every file in it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tierexport.base.codebase import digest_of
from tierexport.base.digests import folder_digests, value_digest
from tierexport.base.files import remove, sync, write_json, writing
from tierexport.base.locks import locked


def stage_key(code: str | Sequence[str], *inputs: Any) -> str:
    """The key of a stage that modules ("tierexport.search.measure") make from JSON-able inputs.

    It covers their code and all that they import of tierexport: what other code made is not taken for fresh, and
    what the stage's result can't depend on changes no key.
    """
    return value_digest([digest_of(*([code] if isinstance(code, str) else code)), *inputs])


class Stages:
    """The finished stages below one folder.

    `root/NAME/` holds what a stage made, `root/.stages/NAME.json` the key it was made for and the
    digest of each file. A stage whose key or files differ is made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a stage that is finished and unharmed, or None."""
        try:
            record: dict[str, Any] = json.loads(self._record_path(name).read_text())
        except (OSError, ValueError):
            return None
        return record if folder_digests(self.root / name) == record.get("files") else None

    def notes(self, name: str) -> Any:
        """What the function returned that made a stage."""
        return json.loads(self._record_path(name).read_text())["notes"]

    def run(self, name: str, key: str, make: Callable[[Path], Any]) -> Path:
        """The folder that `make` fills for `key`, made now unless it is there already.

        What `make` returns is kept as the stage's notes, and has to be JSON-able. Raises MachineError when it can't be written.
        """
        target = self.root / name
        with writing(target), locked(target):
            if (record := self.record(name)) and record["key"] == key:
                return target
            partial = self.root / f".{name}.partial"
            remove(partial)
            partial.mkdir(parents=True)
            try:
                notes = make(partial)
                sync(partial)
            except BaseException:
                remove(partial)
                raise
            self._record_path(name).unlink(missing_ok=True)
            remove(target)
            partial.rename(target)
            write_json(self._record_path(name), {"key": key, "notes": notes, "files": folder_digests(target)})
        return target

    def clear(self) -> None:
        """Remove all stages, and their folder."""
        remove(self.root)

    def drop(self, name: str) -> None:
        """Remove a stage and its record, if they are there; of two processes that do so at once, one waits for the other."""
        with locked(self.root / name):
            self._record_path(name).unlink(missing_ok=True)
            remove(self.root / name)

    def _record_path(self, name: str) -> Path:
        return self.root / ".stages" / f"{name}.json"
