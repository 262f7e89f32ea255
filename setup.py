"""The package list. Everything else is in pyproject.toml, which cannot rename a folder that it finds by searching."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sciml", "sciml.*"]), *find_packages("kernels"), "sciml.configs"],
    package_dir={"sciml_kernels": "kernels/sciml_kernels", "sciml.configs": "configs"},
)
