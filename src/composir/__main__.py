"""``python -m composir``: the command line."""

from composir.cli import main

if __name__ == "__main__":
    main()
