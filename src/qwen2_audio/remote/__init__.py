"""Models behind OpenAI-compatible URLs: how they are addressed, asked and read."""
