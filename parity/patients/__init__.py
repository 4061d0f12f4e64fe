"""ResNets in other styles, healthy and with known mistakes: what the doctor is tried on.

They are this repository's own, written for it. None imports resnet_core, and no two files share a line of structure.
"""
