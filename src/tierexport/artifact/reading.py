"""Reads the JSON files of an artifact folder into typed values, strictly: no key too many or too few, none of another type."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tierexport.base.errors import ArtifactError

STRICT = ConfigDict(extra="forbid", strict=True)
"""How the values of these files are validated; `__pydantic_config__` of each."""

T = TypeVar("T")


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises ArtifactError where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ArtifactError(f"can't read {path} ({error.strerror}): tierexport build makes such a folder") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return found


def validated(adapter: TypeAdapter[T], found: Any) -> T:
    """A JSON value as a typed one. Raises ValueError, which says what is wrong first, and where."""
    try:
        return adapter.validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
