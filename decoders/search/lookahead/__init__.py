"""Searches that look ahead: they roll candidates out before they choose one."""
