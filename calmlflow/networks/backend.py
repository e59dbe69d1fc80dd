"""Import TensorFlow and Keras without their notes on CPU instructions and absent GPUs."""

# Their C++ part writes these straight to file descriptor 2, before it reads any setting.

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.stderr.flush()
_kept = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import keras
    import tensorflow as tf
finally:
    os.dup2(_kept, 2)
    os.close(_kept)
    os.close(_nowhere)

# Each training compiles its epochs anew, which TensorFlow reports as an oversight from the fifth on.
tf.get_logger().setLevel("ERROR")

__all__ = ["keras", "tf"]
