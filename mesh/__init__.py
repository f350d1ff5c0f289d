"""mesh: a peer-to-peer, node-local cache for GPU clusters."""
