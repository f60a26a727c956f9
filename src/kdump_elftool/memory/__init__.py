"""Physical memory: interval tables and reads by physical address."""
