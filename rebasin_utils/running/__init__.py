"""Where and when things are computed: in this process, on workers, on a cluster, in notebooks."""
