"""Trained networks in use: predict, evaluate, explain, optimize, export."""
