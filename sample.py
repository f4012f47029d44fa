"""Pictures of your subject: python sample.py --image dog.png --prompt "a dog in space" --target dog"""

from realcustom_jax.commands.sample import run

if __name__ == "__main__":
    run()
