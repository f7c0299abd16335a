"""The lean path beside what a user would run instead; see `__main__`."""
