"""calmlflow: train, register, promote and serve the networks that size HST calibration jobs."""

__version__ = "0.1.0"
