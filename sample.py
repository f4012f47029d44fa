"""Pictures of your subject: python sample.py --image dog.png --prompt "a dog in space" --target dog"""

from realcustom_jax.commands.program import leave
from realcustom_jax.commands.sample import main

if __name__ == "__main__":
    leave(main())
