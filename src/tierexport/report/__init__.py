"""Renders what is known for people. Computes nothing."""
