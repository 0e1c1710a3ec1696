"""An app that takes its time to be imported."""

import sys
import time

print("importing", file=sys.stderr, flush=True)  # noqa: T201
time.sleep(600)
