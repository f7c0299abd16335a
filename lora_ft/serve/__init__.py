"""Serving: adapter folder + inputs -> predictions."""
