"""Features: what frozen layers compute, kept so that it is computed once."""
