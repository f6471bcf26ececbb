"""The user's project of the tests of the command line."""

from tests.launch.conftest import project

__all__ = ["project"]
