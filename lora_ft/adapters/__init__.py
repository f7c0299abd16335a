"""Adapters: attached to a frozen base, written to a folder, read back and verified."""
