"""`python -m rubric_influence`, and what `accelerate launch -m rubric_influence` starts: the command line."""

import sys

from rubric_influence.cli.main import main

sys.exit(main())
