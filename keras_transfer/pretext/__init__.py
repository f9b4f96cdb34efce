"""Pretext tasks: what a trunk learns from images without labels."""
