"""Drafting with a draft model: its protocol, and the drafts that are sampled from it."""
