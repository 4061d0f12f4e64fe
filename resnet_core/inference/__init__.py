"""Trained networks in use: predict, evaluate, export."""
