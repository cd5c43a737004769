"""Result files, immutable shards, the writer's lock. Readers need no torch."""
