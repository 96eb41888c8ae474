"""Tell asv about this machine, under a name that isn't its host name.

asv reads this out of the home directory, and writes it into the results.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from asv.machine import Machine, MachineCollection


def main(name: str) -> None:
    """Write asv's file about machines."""
    found: dict[str, Any] = Machine.get_defaults()
    MachineCollection.save(name, found | {"machine": name, "os": platform.system()})


if __name__ == "__main__":
    main(*sys.argv[1:])
