"""How a weight is rounded; knows no disk layout and no format."""
