"""The command line, ``hf-nm``."""

from hf_nm.cli.app import main

__all__ = ["main"]
