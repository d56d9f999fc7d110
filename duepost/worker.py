"""The workers' module where the packages are bundled: `duepost worker` runs `dramatiq duepost.worker`."""

from duepost.bundled import use_bundled_packages

use_bundled_packages()

from actors import broker  # noqa: E402 - the path comes first

__all__ = ["broker"]
