"""How a vector is stored: codecs, what bounds they take, and searching codes."""
