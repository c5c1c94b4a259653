"""Checkpoint folders: finding, fetching, reading and writing them."""
