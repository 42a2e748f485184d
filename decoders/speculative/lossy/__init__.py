"""Lossy acceptance, by explicit name only: texts may follow another law than the request's."""
