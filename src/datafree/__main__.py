"""``python -m datafree``, for launchers that start modules, such as ``accelerate launch -m``."""

from datafree.cli.app import main

main()
