"""``python -m rtpool_sync`` is the same as the command ``rtpool``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
