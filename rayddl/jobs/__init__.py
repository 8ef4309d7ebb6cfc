"""Runs on another machine's Ray: what is shipped, how it is asked about, and its form for Kubernetes."""
