"""Ranges of layers as recipes write them."""


def layer_range(text: str, depth: int) -> range:
    """The layers that "2-4", "7" or "30%-80%" mean in a stack of `depth` layers.

    Numbers are inclusive and start at 0; they may go beyond the depth. Shares are cut at the nearest layer boundary, so
    ranges that meet at a share meet without overlap. Raises ValueError, which says what a range has to be, for anything else.
    """
    try:
        return _shares(text, depth) if "%" in text else _numbers(text)
    except ValueError:
        raise ValueError(f'{text!r} has to be a layer ("7"), a range of layers ("2-4") or of the depth ("30%-80%")') from None


def _shares(text: str, depth: int) -> range:
    first, last = text.split("-")
    if not (first.endswith("%") and last.endswith("%")):
        raise ValueError
    low, high = (float(each.removesuffix("%")) / 100 for each in (first, last))
    if not 0 <= low < high <= 1:
        raise ValueError
    return range(int(low * depth + 0.5), int(high * depth + 0.5))


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found or found.start < 0:
        raise ValueError
    return found
