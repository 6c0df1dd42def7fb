"""`python -m smartsched` is `smartsched`."""

import sys

from smartsched.cli import main

sys.exit(main())
