"""What the tests of the rules share is a module beside them, `asking`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
