"""Benchmarks: drive a real server over HTTP and print the story's tables."""
