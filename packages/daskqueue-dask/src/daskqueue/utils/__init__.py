"""Names that daskqueue 0.2.0 had: `from daskqueue.utils import logger`. No handler is configured at import."""

from __future__ import annotations

import logging

__all__ = ["logger"]

logger = logging.getLogger("daskqueue")
