"""Result files, immutable shards and the writer's lock. Readers need no torch."""
