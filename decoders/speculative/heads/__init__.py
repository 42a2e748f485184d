"""Trained draft heads: their weights, and the computation with them."""
