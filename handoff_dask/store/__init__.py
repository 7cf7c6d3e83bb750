"""Results that outlive their cluster: what they are called, and how they are stored."""
