"""`python -m pgworker`."""

from __future__ import annotations

import sys

from pgworker.cli.root import main

if __name__ == "__main__":
    sys.exit(main())
