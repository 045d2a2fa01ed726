"""Models that write: prompts in, texts out, token by token, many at once (docs/generation.md)."""
