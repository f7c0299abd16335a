"""Training: recipe -> adapter folder."""
