"""Recipes: the defaults of each backbone, as TOML files."""
