"""What this package is tested with, for whoever builds on it."""

from daskqueue_storage.testing.log_trial import LogTrial
from daskqueue_storage.testing.sim_files import CRASH_MODES, SimCrash, SimFiles

__all__ = ["CRASH_MODES", "LogTrial", "SimCrash", "SimFiles"]
