"""How an artifact gets to people."""
