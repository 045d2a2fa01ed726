"""Ground floor, data: the words that the rest of the house speaks. Imports nothing of flatshare."""
