"""`python -m diffusion_forcing …` is `diffusion-forcing …`."""

import sys

from diffusion_forcing.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
