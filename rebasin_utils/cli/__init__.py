"""The `rebasin` command."""

import sys


def main() -> None:
    """Entry point: whatever goes wrong is one sentence; the user's own mistakes are exit code 2."""
    from rebasin_utils.versions import old_name

    if old_name():
        print(
            "rebasin: this package is now called rebasin-utils, and this environment has it under "
            "its old name; it works, and `pip uninstall rebasin && pip install -e .` renews it",
            file=sys.stderr,
        )
    from rebasin_utils.cli.command import run_command

    run_command()
