"""Evaluation: adapter folder + rows -> metrics with intervals, beside the base."""
