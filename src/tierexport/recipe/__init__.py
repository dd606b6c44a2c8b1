"""What is declared, and what it means for a model."""
