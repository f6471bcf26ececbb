"""The entry users know: `python -m main …`. `python -m main --help` lists what there is."""

import sys

if __name__ == "__main__":
    try:
        from diffusion_forcing.launch.cli import main
    except ModuleNotFoundError as missing:
        sys.exit(
            f"error: {sys.executable} has no package {missing.name!r}; use the environment that `make` or pip installed into "
            "(source .venv/bin/activate)"
        )
    sys.exit(main())
