"""Frozen layers and predictions on many processes and machines, by Ray."""
