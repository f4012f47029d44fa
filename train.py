"""Trains: python train.py --config=configs/mini.py --workdir=runs/mini"""

from realcustom_jax.commands.train import main

if __name__ == "__main__":
    main()
