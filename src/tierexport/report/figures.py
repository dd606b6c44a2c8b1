"""How figures with their intervals are written."""

Interval = tuple[float, float]


def with_interval(value: float | None, interval: Interval | None) -> str:
    """0.00251 (0.00210 to 0.00290); empty where there is no figure, as in verifications of earlier versions."""
    if value is None or interval is None:
        return ""
    return f"{value:.5f} ({interval[0]:.5f} to {interval[1]:.5f})"
