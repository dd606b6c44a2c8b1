"""Quantizing what a model puts out: codecs, how their bounds are chosen, scoring, and training for them."""
