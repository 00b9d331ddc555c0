"""Audio-driven talking heads by a latent diffusion transformer, run at low latency.

Importing this package is cheap: torch is loaded by the modules that compute, not here.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dithead")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__"]
