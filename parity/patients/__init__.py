"""ResNets as other people write them, healthy and with known mistakes: what the doctor is tried on.

Nothing here imports resnet_core, and no two of these files share a line of structure.
"""
