"""``python -m sciml VERB ...``: the command line where a launcher starts a module, such as torchrun."""

import sys

from sciml.cli import main

sys.exit(main())
