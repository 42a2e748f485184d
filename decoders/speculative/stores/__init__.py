"""Draft stores: earlier texts and their indexes, separate for each namespace."""
