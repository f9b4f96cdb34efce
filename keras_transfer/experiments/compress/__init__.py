"""Compression of a finished run: a smaller trunk, an ordinary run on it, and the comparison."""
