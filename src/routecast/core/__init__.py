"""The heart of Routecast, sans I/O: no await, no clock, no environment, no socket.

`now` is always an argument, in microseconds since 1970.
"""
