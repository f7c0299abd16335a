"""Rows: where they come from, how they are split, which columns and labels they have."""
