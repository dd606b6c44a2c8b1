"""Files, errors and values: what everything else stands on."""
