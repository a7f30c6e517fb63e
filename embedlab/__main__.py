"""`python -m embedlab` is `embedlab`."""

import sys

from embedlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
