"""Who runs the tasks: this process, or many."""
