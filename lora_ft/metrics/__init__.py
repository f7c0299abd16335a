"""Metrics: one evaluate.Metric module each, loaded offline."""
