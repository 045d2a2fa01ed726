"""The first half of a request's path: the front door, admission, routing."""
