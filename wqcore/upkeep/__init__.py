"""What keeps the line safe while it runs: beat, rescue, retire. `keeper.py` composes it on its clocks."""
