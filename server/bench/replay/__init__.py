"""Replays of logged tokens through drafters, without a model."""
