"""What several tasks are made of; no task itself."""
