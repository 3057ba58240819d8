"""Helpers shared by tests: real servers as processes, test clients, and an independent oracle."""
