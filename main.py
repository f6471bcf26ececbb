"""The entry users know: `python -m main …`. `python -m main --help` lists what there is."""

import sys

from diffusion_forcing.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
