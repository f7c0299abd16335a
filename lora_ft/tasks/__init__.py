"""Tasks: one file each, with all that makes that task different."""
