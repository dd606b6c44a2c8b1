"""How vectors are stored: codecs, how their bounds are chosen, and searching codes. Nothing is trained here: see `training`."""
