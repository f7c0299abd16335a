"""Pure functions of tensors, each beside a slow twin in its test; without one the toolkit is slower, not wrong."""
