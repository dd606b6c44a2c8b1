"""Which texts: retrieval sets, calibration texts, sentence pairs; the built-in ones lie beside this."""
