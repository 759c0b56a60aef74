"""What people who work on the project run; never imported by the nodes or by sara_core."""
