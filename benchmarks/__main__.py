"""``python -m benchmarks`` is ``rtpool bench``."""

import sys

from rtpool_sync.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
