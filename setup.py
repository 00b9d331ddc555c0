"""Map the top-level folders to subpackages of ``dithead``; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("export", "runtime", "kernels", "train", "bench")

package_dir = {"dithead": "dithead"}
packages = find_packages(include=["dithead", "dithead.*"])
for folder in FOLDERS:
    package_dir[f"dithead.{folder}"] = folder
    # Found, not listed: a hand-written list silently drops a forgotten subpackage from the wheel.
    found = find_packages(include=[folder, f"{folder}.*"])
    packages += [f"dithead.{package}" for package in found]

setup(packages=packages, package_dir=package_dir)
