"""Finding tiers: what each layer does, what rounding it costs, and how to spend the bytes."""
