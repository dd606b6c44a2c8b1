"""Which types are best for a model."""
