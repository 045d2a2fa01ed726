"""Thin loops that act on decisions."""
