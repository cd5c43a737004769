"""Where the repository, its test workers and the shared data lie."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
DATA = Path(os.environ.get("HESSIAN_SPECTRUM_DATA", ROOT.parent / "shared" / "data")).resolve()
