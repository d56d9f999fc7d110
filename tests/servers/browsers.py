"""A real browser: Debian's Chromium without a screen, driven by Playwright."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.install import installed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FONTS = (
    "<fontconfig><dir>{here}/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{cache}</cachedir>"
    "<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias></fontconfig>"
)


@contextmanager
def chromium(folder: Path) -> Iterator["Browser"]:
    """A browser, with what it writes in a folder of its own."""
    here = installed("chromium")
    configured = folder / "fonts.conf"
    configured.write_text(FONTS.format(here=here, cache=folder / "fonts"))
    places = [here / f"usr/lib/{machine}-linux-gnu" for machine in ("x86_64", "aarch64")]
    # PulseAudio's own library lies in a folder of its own, which it looks for where Debian has it.
    libraries = ":".join(f"{place}:{place / 'pulseaudio'}" for place in places)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LD_LIBRARY_PATH": libraries,
        "FONTCONFIG_FILE": str(configured),
    }
    program = here / "usr/lib/chromium/chromium"
    sys.path.append(str(installed("playwright") / "usr"))
    try:
        playwright = importlib.import_module("playwright.sync_api")
        with playwright.sync_playwright() as driver:
            # As root, and in containers, Chromium has no sandbox of its own; what is shown here is ours.
            flags = ["--no-sandbox", "--disable-dev-shm-usage"]
            browser = driver.chromium.launch(executable_path=str(program), args=flags, env=env)
            yield browser
            browser.close()
    finally:
        sys.path.remove(str(installed("playwright") / "usr"))


def axe() -> str:
    """The judge of accessibility, as a script."""
    return (installed("npm") / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
