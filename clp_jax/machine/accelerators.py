"""Which accelerator a command looks for."""

import importlib.util
import os
import pathlib
import sys
from importlib.metadata import entry_points

_PCI = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
# Google's disks and network adapters, by class of PCI device; what else is Google's is a TPU.
_NO_CHIPS = ("0x01", "0x02")


def look_for_none_in_vain() -> None:
    """Makes JAX compute on the CPU where libtpu is installed and no TPU is there.

    JAX would look for a chip, say at length that there is none, and then do so too. Whatever the
    user set holds, and other accelerators are found as ever. To be called before JAX computes.
    """
    if os.environ.get("JAX_PLATFORMS") or importlib.util.find_spec("libtpu") is None:
        return
    if has_tpu() or entry_points(group="jax_plugins"):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"  # of processes that this one starts, too
    if "jax" in sys.modules and not sys.modules["jax"].config.jax_platforms:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def has_tpu(devices: pathlib.Path = _PCI) -> bool:
    """Whether a TPU is among this machine's PCI devices."""
    for vendor in devices.glob("*/vendor"):
        if vendor.read_text().strip() == _GOOGLE:
            kind = vendor.with_name("class")
            if not kind.is_file() or not kind.read_text().startswith(_NO_CHIPS):
                return True
    return False
