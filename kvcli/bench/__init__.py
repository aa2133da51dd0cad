"""Speed of prefill and decode on this machine, compared with its peak arithmetic and bandwidth: ``kvcli bench``."""
