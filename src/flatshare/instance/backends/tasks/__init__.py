"""What models are for, one module each: from a call to rows of tokens, and from a graph's output to an answer."""
