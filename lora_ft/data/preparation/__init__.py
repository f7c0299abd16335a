"""Texts and rows made ready for learning, a file for each family of steps."""
