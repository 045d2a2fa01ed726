"""The protocols that callers speak: each door turns a request into an `Ask` of the one journey, and its answer back."""
