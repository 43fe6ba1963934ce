"""``python -m nnunet_unifiedloss`` is ``nnunet-unifiedloss``."""

from nnunet_unifiedloss.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
