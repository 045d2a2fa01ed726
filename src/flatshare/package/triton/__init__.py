"""Triton model repositories: found, read, checked and put into the store as they are."""
