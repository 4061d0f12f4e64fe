TASK = "stride"

STRIDES = (1, 2, 2, 2)
V1_5 = "conv2"
V1 = "conv1"
CONV4_X = (1024, 18, 18)
