"""kdump-elftool: turn a Linux kernel memory dump into an ELF core that stock gdb can open."""
