"""The model card's API: a network with its loss, its metrics and its initializers."""
