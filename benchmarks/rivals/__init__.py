"""How it is mostly done: one job, on four queues as they come. They run in an environment of their own."""
