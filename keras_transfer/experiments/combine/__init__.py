"""Combines finished runs into one: the mean of their weights, or of their probabilities."""
