//! Text readers, the bundled corpus, conversations, token shards, packing.
