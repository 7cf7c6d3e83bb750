"""What functions of a code use, learned from those that ended. Pure."""
