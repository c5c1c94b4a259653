"""Training: examples of conversations, packed, through one trainer."""
