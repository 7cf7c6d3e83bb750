"""The package's own copy, for clusters that lack it."""
