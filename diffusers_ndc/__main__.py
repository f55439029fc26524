"""`python -m diffusers_ndc`: the command `diffusers-ndc`."""

import sys

from .command import main


if __name__ == "__main__":
    sys.exit(main())
