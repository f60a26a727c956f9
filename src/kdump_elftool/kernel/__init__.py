"""What a dump tells about its kernel."""
