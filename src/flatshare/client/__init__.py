"""All that dials out: the gateway's road to an instance, and the AWS clients that the CLI uses."""
