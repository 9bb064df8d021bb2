"""The production line, in order of travel: insert → turn → keys → execute → settle. `shard.py` composes it."""
