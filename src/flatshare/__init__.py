"""flatshare: many models, one roof. Multi-model endpoints you can run anywhere, with the same boto3 calls as SageMaker."""

import os

# Before anything imports ONNX Runtime, which would start a thread that reports to its maker (seen in 1.32), and so could not be forked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
