"""The peers: other parameter servers, each in an environment of its own under build/peers."""
