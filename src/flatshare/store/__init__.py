"""Where models live: the artifact sources, and the tensors by content hash on this machine's disk."""
