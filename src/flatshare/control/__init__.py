"""The control plane: the SageMaker API edits desired state, and a loop makes the world match."""
