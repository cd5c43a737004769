"""``python -m hessian_spectrum``: the command line, under any launcher."""

import sys

from hessian_spectrum.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
