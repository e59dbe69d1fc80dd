"""Parse names of HST datasets."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError

INSTRUMENTS = {"j": "ACS", "l": "COS", "o": "STIS", "i": "WFC3"}
"""First letter of an ipppssoot -> instrument, for the instruments the networks know, in the order of their codes."""

INSTRUMENT_CODES = {letter: code for code, letter in enumerate(INSTRUMENTS)}
"""First letter of an ipppssoot -> value of the feature ``instr`` (ACS 0, COS 1, STIS 2, WFC3 3)."""

_CAMERAS = "acs|foc|nicmos|stis|wfc3|wfpc2|wfpc"
_IPPPSSOOT = r"[a-z][a-z0-9]{8}"
_SINGLE_VISIT = rf"(?:{_CAMERAS})_[a-z0-9]{{3}}_[a-z0-9]{{2}}"
_MULTI_VISIT = r"(?:hst_)?(?:skycell-)?p[0-9]{4}x[0-9]{2}y[0-9]{2}"
# Products begin with the name of their dataset, but those of a visit: hst_8553_ph_acs_wfc_f606w_j8phab_drz.fits.
_PRODUCT = re.compile(rf"(?:hst_)?({_IPPPSSOOT}|{_SINGLE_VISIT}|{_MULTI_VISIT})[_.][a-z0-9_.-]+")
_VISIT_PRODUCT = re.compile(rf"hst_[0-9]+_[^_]+_({_CAMERAS})_.+_[a-z]([a-z0-9]{{3}})([a-z0-9]{{2}})[a-z0-9]*[_.].+")

Kind = Literal["ipppssoot", "single-visit", "multi-visit"]


@dataclass(frozen=True)
class Dataset:
    """An HST dataset.

    Attributes
    ----------
    name : str
        In lower case, as buckets and tables spell it.
    kind : {"ipppssoot", "single-visit", "multi-visit"}
    """

    name: str
    kind: Kind

    @property
    def is_hap(self) -> bool:
        """True for the mosaics of the Hubble Advanced Products, which no network covers."""
        return self.kind != "ipppssoot"

    @property
    def is_association(self) -> bool:
        """True for an ipppssoot that ends in ``0``."""
        return self.kind == "ipppssoot" and self.name.endswith("0")

    @property
    def instrument_code(self) -> int:
        """Value of the feature ``instr``; an InputError for a mosaic, which has none."""
        if self.is_hap:
            raise InputError(f"dataset {self.name!r} is a {self.kind} mosaic; the networks cover ipppssoots only")
        return INSTRUMENT_CODES[self.name[0]]

    @property
    def control_key(self) -> str:
        """S3 key of the control file: ``control/{name}/{name}_MemModelFeatures.txt``."""
        return f"control/{self.name}/{self.name}_MemModelFeatures.txt"


def parse_dataset(name: object) -> Dataset:
    """Parse the name of a dataset, in upper or lower case.

    Raises
    ------
    InputError
        The name is no dataset's, or belongs to an instrument the networks do not know.
    """
    folded = name.strip().lower() if isinstance(name, str) else ""
    if re.fullmatch(_IPPPSSOOT, folded):
        if folded[0] not in INSTRUMENTS:
            known = ", ".join(f"{letter} {instrument}" for letter, instrument in INSTRUMENTS.items())
            raise InputError(
                f"dataset {folded!r} starts with {folded[0]!r}, which is no known instrument; known: {known}"
            )
        return Dataset(folded, "ipppssoot")
    if re.fullmatch(_SINGLE_VISIT, folded):
        return Dataset(folded, "single-visit")
    if re.fullmatch(_MULTI_VISIT, folded):
        return Dataset(folded, "multi-visit")
    try:
        shown = repr(name[:60] if isinstance(name, str) else name)
    except (ValueError, RecursionError):  # A number of thousands of digits, or lists within lists.
        shown = f"a {type(name).__name__}"
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if (meant := _dataset_of_product(folded[:200])) is not None:
        raise InputError(f"{shown} is the name of a product; expected that of its dataset, {meant}")
    raise InputError(
        f"{shown} is no dataset name; expected nine characters such as j8c601020, "
        "or a mosaic such as acs_8ph_01 or skycell-p0797x14y06"
    )


def _dataset_of_product(name: str) -> str | None:
    if product := _PRODUCT.fullmatch(name):
        return product[1]
    product = _VISIT_PRODUCT.fullmatch(name)
    return "_".join(product.groups()) if product else None


def programmes(names: ArrayLike) -> NDArray[np.str_]:
    """Observing programmes of n ipppssoots: their first four characters, shape (n,)."""
    return np.asarray(names, dtype="U4")
