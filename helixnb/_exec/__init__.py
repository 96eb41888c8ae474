"""Where jobs run: slots, worker threads and the lanes in front of them."""
