"""`python -m infer`."""

import sys

from infer.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
