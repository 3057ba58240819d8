"""Conformance of the WebSocket protocol class, by the Autobahn test suite's fuzzing client.

`python -m tests.conformance` runs it; `echo` is the build of the class that it talks to.
"""
