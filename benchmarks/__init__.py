"""Benchmarks of whole steps; each module is a command."""
