"""From recordings and words to what the model eats. Nothing here knows the model."""
