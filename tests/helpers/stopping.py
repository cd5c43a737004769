"""A signal that comes once a run's file has so much."""

from hessian_spectrum.commands.signals import StopRequest


class StopOnceThere(StopRequest):
    """SIGTERM as soon as ``out`` exists, and ``enough(out)`` is true."""

    def __init__(self, out, enough=lambda out: True):
        self.out, self.enough = out, enough
        super().__init__()

    @property
    def name(self):
        return "SIGTERM" if self.out.exists() and self.enough(self.out) else None

    @name.setter
    def name(self, value):
        assert value is None
