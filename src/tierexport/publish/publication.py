"""What a publication is: objections, changes, outcome."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Objection:
    """A reason not to publish, and the name by which a user may overrule it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Change:
    """A file of the release beside what the hub has: "new", "changed", "same" or "removed"; bytes of what is sent."""

    path: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Publication:
    """What was published, or would be: `url` is where it can be seen, None where nothing was uploaded."""

    target: str
    changes: tuple[Change, ...]
    overruled: tuple[Objection, ...]
    url: str | None = None

    @property
    def sent(self) -> tuple[Change, ...]:
        """The changes without what is the same already."""
        return tuple(change for change in self.changes if change.what != "same")

    @property
    def outcome(self) -> str:
        """What became of it, in one line."""
        return f"published: {self.url}" if self.url else "nothing was uploaded"

    def as_json(self) -> dict[str, Any]:
        """As `publish --json` prints it."""
        return asdict(self)
