"""How nbval runs these notebooks."""

from nbval.plugin import IPyNbFile


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        collector.output_timeout = 60  # seconds between two messages, for busy machines; no option
