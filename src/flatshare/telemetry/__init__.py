"""Eyes: logs and metrics."""
