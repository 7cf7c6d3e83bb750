"""Results that outlive their run: how they are named, and where they are kept."""
