"""How what is known is shown."""
