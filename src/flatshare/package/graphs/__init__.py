"""ONNX graphs generated from a checkpoint's config, one module per family."""
