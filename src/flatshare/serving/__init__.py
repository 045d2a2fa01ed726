"""Doors: how an `async (Request) -> Reply` becomes a server that listens, answers everybody, and drains when it is told to stop."""
