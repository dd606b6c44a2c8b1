"""How a model is trained for quantized vectors."""
