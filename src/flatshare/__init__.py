"""flatshare: many models, one roof. Multi-model endpoints you can run anywhere, with the same boto3 calls as SageMaker."""

__version__ = "0.1.0"
