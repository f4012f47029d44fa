import sys

from realcustom_jax.evaluation.cli import main

sys.exit(main())
