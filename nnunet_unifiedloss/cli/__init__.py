"""The command ``nnunet-unifiedloss``: parses, calls the library, prints.

One module for each command or group of commands. Imports are inside the functions: ``--help`` and
``path`` must not wait for torch.
"""

from nnunet_unifiedloss.cli.program import main

__all__ = ["main"]
