"""Lossy acceptance rules: texts may follow another distribution. Only by explicit name."""
