"""Runs, from their configurations to their directories: train, evaluate, compare."""
