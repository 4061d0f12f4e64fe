"""Proof that `resnet_core` is torchvision's ResNet: rungs, each of which compares more, and bit for bit."""
