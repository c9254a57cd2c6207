"""A Linux host's side: volumes as /dev/nbdN that outlive any one storage processor."""
