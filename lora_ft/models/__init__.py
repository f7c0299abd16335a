"""Bases: found, loaded in the right precision, quantised, fingerprinted."""
