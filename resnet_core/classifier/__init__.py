"""The API of Composer's ResNet model card: a network with its loss, metrics and initializers."""
