"""What every test stands on.

splitpoint comes before anything a test imports: it turns off the telemetry of what it builds on. And the environment
counts as activated, so that what is printed to be typed next is the same wherever the tests run.
"""

import os
import sys
from pathlib import Path

import splitpoint  # noqa: F401

os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
