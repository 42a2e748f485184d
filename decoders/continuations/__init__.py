"""Scoring given continuations of a prompt."""
