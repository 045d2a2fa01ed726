"""Engines: what turns texts into tensors once a model is resident."""
