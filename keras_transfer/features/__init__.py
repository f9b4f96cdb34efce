"""Features: the cached outputs of frozen layers."""
