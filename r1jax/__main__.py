"""python -m r1jax."""
import sys

from r1jax.main import main

sys.exit(main())
