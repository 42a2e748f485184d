"""Drafting with a second model: its protocol, and the chains that are drawn from it."""
