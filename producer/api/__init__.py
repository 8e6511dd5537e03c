"""The HTTP API: jobs, batches and models for programs in any language."""
