"""What is seen of a router: the routing log and snapshots of its counts."""
