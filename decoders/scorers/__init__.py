"""Scorers: what texts are worth, for searches that choose among them."""
