"""drgn as the oracle: the records of a dump's log, as JSON.

usage: oracle_dmesg.py DUMP VMLINUX
"""

from __future__ import annotations

import json
import sys

import drgn
from drgn.helpers.linux.printk import get_printk_records


def main() -> None:
    dump, vmlinux = sys.argv[1:]
    prog = drgn.Program()
    prog.set_core_dump(dump)
    prog.load_debug_info([vmlinux])
    records = [
        {
            "seq": record.seq,
            "ts_nsec": record.timestamp,
            "facility": record.facility,
            "level": record.level,
            "caller": f"T{record.caller_tid}" if record.caller_tid is not None else f"C{record.caller_cpu}",
            "text": record.text.hex(),
        }
        for record in get_printk_records(prog)
    ]
    json.dump(records, sys.stdout)


if __name__ == "__main__":
    main()
