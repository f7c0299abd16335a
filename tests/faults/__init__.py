"""Runs that are killed, torn and short of room, and what is left of them; minutes each, see docs/checkpoints.md."""
