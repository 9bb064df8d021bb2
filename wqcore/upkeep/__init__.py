"""What keeps the line safe while it runs: beat, rescue, cron, retire. `keeper.py` composes it on its clocks."""
