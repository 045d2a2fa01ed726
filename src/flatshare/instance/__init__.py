"""The second half of a request's path: one program that keeps models in memory and runs them."""
