"""From prompts to answers: options, sampling, stopping, and the engine that drives the model."""
