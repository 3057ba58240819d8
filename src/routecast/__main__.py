"""`python -m routecast` is the command `routecast`."""

from routecast.cli import main

main()
