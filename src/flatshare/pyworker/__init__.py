"""What runs inside a worker process: models' own code, and the Triton API that it was written for.

Imports nothing but the standard library and numpy, and nothing of the rest of flatshare: a worker may be another Python with packages
of its own (EXECUTION_ENV_PATH). Python 3.10 or later.
"""
