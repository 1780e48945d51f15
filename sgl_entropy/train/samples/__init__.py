"""Training samples: a store of features, or features computed when they are needed."""
