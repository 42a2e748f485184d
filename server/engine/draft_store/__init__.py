"""The worker's side of the draft store API."""
