"""Text normalisers: what may differ between a reference and an answer without being an error."""
