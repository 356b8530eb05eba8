"""Experts: how their weights are held and what they compute."""

from thermoe.experts.simple import ExpertKind, SimpleExpert

__all__ = ["ExpertKind", "SimpleExpert"]
