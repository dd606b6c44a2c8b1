"""Sizes as people write and read them."""

import pytest

from tierexport.base.errors import InputError
from tierexport.base.sizes import parse_size, shown_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16MB", 16_000_000),
        ("15.5 MiB", 16_252_928),
        ("1.2gb", 1_200_000_000),
        (".5GiB", 2**29),
        ("800 KB", 800_000),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["16", "MB", "16 Mb/s", "-1MB", "0MB", "1,5 MB", "16TB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no size: write a number and"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (999, "999 B"), (1000, "1.00 KB"), (16_343_008, "16.3 MB"), (90_868_376, "90.9 MB"), (999_600, "1.00 MB"),
        (999_499_999, "999 MB"), (2_267_000_000, "2.27 GB"), (99_951_000, "100 MB"),
    ],
)  # fmt: skip
def test_sizes_are_shown_with_three_digits(size: int, shown: str) -> None:
    assert shown_size(size) == shown
