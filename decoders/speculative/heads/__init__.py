"""Trained drafters' weights, and what is computed with them."""
