"""Installs the subnet as a package; requirements.txt is the one list of what it needs."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
LINES = [line.split("  #")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
LINES = [line for line in LINES if line and not line.startswith("#")]
TESTS = LINES.index(next(line for line in LINES if line.startswith("pytest")))

setup(
    name="iota-subnet",
    version="0.1.0",
    description="Incentivised Orchestrated Training Architecture as a Bittensor subnet, whole and on one machine",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["subnet", "subnet.*", "neurons"]),
    package_data={"subnet.orchestrator": ["dashboard/*"]},
    install_requires=[line for line in LINES[:TESTS] if not line.startswith("setuptools")],
    extras_require={"tests": LINES[TESTS:]},
)
