"""Exit code 0 where this Python has the named packages at the versions of requirements.txt; else prints what it lacks.

Usage: python tests/parity/check_packages.py PACKAGE ...
Reads what is installed and imports nothing, so that it costs little.
"""

import fnmatch
import importlib.metadata
import pathlib
import sys


def main():
    lines = (pathlib.Path(__file__).parent / "requirements.txt").read_text().splitlines()
    pins = dict((line.split("==") + ["*"])[:2] for line in lines if line and not line.startswith("#"))
    lacking = []
    for name in sys.argv[1:]:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(f"no {name}")
            continue
        if not fnmatch.fnmatch(found.split("+")[0], pins[name]):
            lacking.append(f"{name} {found} instead of {pins[name]}")
    if lacking:
        sys.exit(f"{sys.executable} has {', '.join(lacking)}")


if __name__ == "__main__":
    main()
