"""A run from its configuration to its directory: train, evaluate, compare."""
