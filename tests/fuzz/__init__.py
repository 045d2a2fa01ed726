"""Whatever bytes come: an answer or an error of our own tree, in bounded time, and nothing else. `make fuzz` runs these for longer."""
