"""`python -m routecast` is the command `routecast`."""

import sys


def main() -> None:
    """Run the command; if only the client is installed, exit with advice."""
    try:
        from routecast.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "routecast":
            raise
        sys.exit(
            f"routecast: the command needs {error.name}, which is not installed. "
            'Install the server part: pip install "/path/to/checkout[server]"'
        )
    run()


if __name__ == "__main__":
    main()
