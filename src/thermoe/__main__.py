"""`python -m thermoe`: the same as the `thermoe` command."""

import sys

from thermoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
