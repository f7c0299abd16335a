"""Recipes: YAML in, a checked and typed Recipe out, without importing anything heavy."""
