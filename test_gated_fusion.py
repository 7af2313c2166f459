"""The published self-check of the gated fusion: a forward to ``composir selfcheck``."""

import sys

from composir.cli import main

if __name__ == "__main__":
    main(["selfcheck", *sys.argv[1:]])
