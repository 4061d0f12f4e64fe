"""Other implementations that ours is compared with: how each is built, how names map, what is known to differ.

`ORACLES["timm"].networks("resnet18")` gives ours and theirs with the same weights. Importing this module imports
none of the libraries. `ORACLES["timm"].is_installed()` returns whether one can be used.
"""

from parity.oracles import keras, onnxruntime, timm, torchvision, transformers
from parity.oracles.oracle import Oracle

ORACLES: dict[str, Oracle] = {
    each.ORACLE.package: each.ORACLE for each in (torchvision, timm, transformers, keras, onnxruntime)
}
__all__ = ["ORACLES", "Oracle"]
