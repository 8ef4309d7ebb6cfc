"""Runs as jobs on a Ray cluster: packaging, submission, status, and manifests for Kubernetes."""
