"""torchao: a sentence-transformers folder whose weights torchao has quantized."""
