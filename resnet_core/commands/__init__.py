"""The commands of `resnet-core`, one class each: its fields are the options, calling it does the work."""
