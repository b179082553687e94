"""The server role: holds shares of dense groups and runs update rules on them."""
