"""Adapters: the implementations of the ports, one for each engine."""
