"""Which release this is."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("duepost")
except PackageNotFoundError:
    VERSION = "0"

RELEASE = f"duepost@{VERSION}"
