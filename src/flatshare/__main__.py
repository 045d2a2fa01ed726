"""`python -m flatshare`."""

from flatshare.cli.main import main

if __name__ == "__main__":
    main()
