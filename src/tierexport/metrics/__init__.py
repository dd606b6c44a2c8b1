"""How vectors are compared: similarities, and the nearest of many."""
