"""A deployment's path, first half: from what a training wrote to an immutable, content-addressed model."""
