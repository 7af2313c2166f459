"""The published training command: a forward to ``composir train``."""

import sys

from composir.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
