"""The command line: `resnet-core`, one file for each group of commands."""
