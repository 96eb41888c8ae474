"""Routers for a service's own tests: every outcome on request, whatever the machine is doing."""

from helixnb.testing._routers import ScriptedBlockingRouter, ScriptedRouter, opened
from helixnb.testing._script import Hold, Script

__all__ = ["Hold", "Script", "ScriptedBlockingRouter", "ScriptedRouter", "opened"]
