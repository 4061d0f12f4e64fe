"""What every room stands on: files that appear whole, a lock, TOML, precision, suggestions, the version."""
