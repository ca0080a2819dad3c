"""The usual way: the same job on four queues, out of the box. They run in their own virtual environment."""
