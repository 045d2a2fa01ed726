"""Fleet drivers: how an instance is started and stopped."""
