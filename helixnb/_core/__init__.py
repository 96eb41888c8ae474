"""Pure code: decisions, queues and the life of a job. No event loop, no threads, no clock."""
