"""The model that drafts for another one, in the same worker."""
