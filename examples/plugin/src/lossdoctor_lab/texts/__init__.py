"""The texts of this package, one file per language."""
