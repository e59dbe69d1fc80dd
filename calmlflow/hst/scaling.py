"""Scale the features for the networks by the transform that ``tx_data.json`` keeps."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES


@dataclass(frozen=True)
class Scaling:
    """Yeo-Johnson transform of n_files and total_mb, then zero mean and unit variance.

    Attributes
    ----------
    lambdas, mu, sigma : tuple of 2 floats
        For n_files and total_mb, in this order. ``mu`` and ``sigma`` belong to the transformed values.

    References
    ----------
    Yeo and Johnson, A new family of power transformations to improve normality or symmetry, Biometrika 87 (2000).
    """

    lambdas: tuple[float, float]
    mu: tuple[float, float]
    sigma: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("lambdas", "mu", "sigma"):
            values = getattr(self, name)
            if len(values) != 2 or not np.all(np.isfinite(values)):
                raise InputError(f"scaling: {name} is {values!r}; expected two finite numbers")
        if min(self.sigma) <= 0:
            raise InputError(f"scaling: sigma is {self.sigma!r}; expected two numbers above 0")

    def apply(self, features: ArrayLike) -> NDArray[np.float32]:
        """Scale feature vectors.

        Parameters
        ----------
        features : array_like, shape (n, 9)
            In the order of `FEATURES`.

        Returns
        -------
        ndarray of float32, shape (n, 9)
            What the networks take: x_files, x_size and the seven other features as they are.
        """
        features = np.asarray(features, dtype=float)
        if features.ndim != 2 or features.shape[1] != len(FEATURES):
            raise InputError(f"features have shape {features.shape}; expected (n, {len(FEATURES)})")
        scaled = features.copy()
        for column, (lam, mu, sigma) in enumerate(zip(self.lambdas, self.mu, self.sigma, strict=True)):
            scaled[:, column] = (yeo_johnson(features[:, column], lam) - mu) / sigma
        return scaled.astype(np.float32)

    def to_json(self) -> str:
        """The text of ``tx_data.json``."""
        return json.dumps({"lambdas": list(self.lambdas), "mu": list(self.mu), "sigma": list(self.sigma)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Scaling":
        """Read the text of ``tx_data.json``; an InputError names what does not fit."""
        try:
            data = json.loads(text)
            return cls(*(tuple(float(v) for v in data[key]) for key in ("lambdas", "mu", "sigma")))  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                'tx_data.json does not parse; expected {"lambdas": [2], "mu": [2], "sigma": [2]}'
            ) from error


def yeo_johnson(x: NDArray[np.float64], lam: float) -> NDArray[np.float64]:
    """Yeo-Johnson power transform of values of any sign, elementwise."""
    magnitude = np.log1p(np.abs(x))
    # expm1 keeps the digits where lam is close to the two values at which the power turns into a logarithm.
    up = magnitude if lam == 0 else np.expm1(lam * magnitude) / lam
    if not np.any(x < 0):
        return up
    down = magnitude if lam == 2 else np.expm1((2 - lam) * magnitude) / (2 - lam)
    return np.where(x >= 0, up, -down)
