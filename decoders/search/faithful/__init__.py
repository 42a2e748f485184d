"""Searches that sample: texts follow the law of the model given the constraint."""
