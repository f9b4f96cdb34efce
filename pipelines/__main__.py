"""`python -m pipelines <verb> …` is `python -m pipelines.<verb> …`."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
