"""`python -m daskqueue_storage`."""

from __future__ import annotations

import sys

from daskqueue_storage.command_line import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
