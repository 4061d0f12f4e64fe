"""The networks: He et al.'s Table 1, the CIFAR family, and what other code builds on."""
