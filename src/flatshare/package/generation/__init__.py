"""Checkpoints of models that write: T5 and Llama shapes, from safetensors or GGUF."""
