"""The peers: what a good engineer would write or configure with each of them, and what it promises about a job."""
