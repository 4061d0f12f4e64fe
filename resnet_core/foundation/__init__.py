"""Shared helpers of all other folders: atomic files, a lock, TOML, precision, error wording, the version."""
