"""Triton repositories: ensembles and their steps, each run by a worker of its code version."""
