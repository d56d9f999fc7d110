"""A request that got no answer."""

from actors.ruling import Phase


class Broken(Exception):
    """No answer came.

    Attributes:
        phase: what was being done; `Phase.RESPONSE` once the request's last byte was written.
        what: what happened, for people; of the URL it says no more than the host.
    """

    def __init__(self, phase: Phase, what: str) -> None:
        super().__init__(what)
        self.phase = phase
        self.what = what
