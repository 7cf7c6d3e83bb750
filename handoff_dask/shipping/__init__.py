"""Sends the package's own copy to clusters that lack it."""
