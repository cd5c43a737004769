"""Torch's switches of float32 precision."""

from torch import backends

FLOAT32 = (
    *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
    *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
)
