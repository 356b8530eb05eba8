"""Kernels against their floors and their rivals: what is measured, how, and what is written."""
