"""Finds the packaged demo footage under its former name; :mod:`dithead.footage` is the module."""

from __future__ import annotations

import sys

from dithead.footage import main

if __name__ == "__main__":
    sys.exit(main())
