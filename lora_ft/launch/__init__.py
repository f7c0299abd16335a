"""Machine -> accelerate configuration -> command, without torch."""
