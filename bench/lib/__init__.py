"""What the measurements are made with: processes, counters of the kernel, load, results, their tables and plots."""
