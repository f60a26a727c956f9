"""The CPUs of QEMU migration streams: what is read, and what damaged or lying descriptions give."""

from __future__ import annotations

import json
import struct
from random import Random

import pytest

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import migration_description, migration_structs, open_dump, qemu_devices
from kdump_elftool.formats.base import Dump
from tests.builders import migration as mig
from tests.builders import migration_devices as dev

MB = 1 << 20
SEED = 20261124


def x86_registers(cpu: int, bits: int = 64) -> dict[str, int]:
    """Other numbers in each register of each CPU."""
    random = Random(f"{SEED} {cpu}")
    names = [*dev.GENERAL, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "kernel_gs_base"]
    registers = {name: random.getrandbits(bits) for name in names}
    for segment in (*dev.SEGMENTS, "ldt", "tr", "gdt", "idt"):
        registers[segment] = random.getrandbits(16)
        registers[f"{segment}_base"] = random.getrandbits(bits)
        registers[f"{segment}_limit"] = random.getrandbits(32)
        registers[f"{segment}_flags"] = random.getrandbits(24)
    return registers


def machine(cpus: int) -> list[dev.Device]:
    """Devices as QEMU writes them: something before, between and behind the CPUs."""
    devices = [dev.timer()]
    for cpu in range(cpus):
        devices += [
            dev.common(cpu),
            dev.x86_cpu(cpu, x86_registers(cpu)),
            dev.Device("apic", cpu, dev.structure("lvt", [[dev.numbers("it", 4, 9)]] * 6)),
        ]
    return [*devices, dev.Device("fw_cfg", 0, [dev.numbers("cur", 2, 1)])]


def stream(behind: bytes, **more: object) -> bytes:
    records = mig.records("pc.ram", [(at, None) for at in range(0, MB, 4096)])
    return mig.Stream([records, b""], {"pc.ram": MB}, behind=behind, **more).build()


@pytest.fixture
def dump_of(tmp_path):
    files = []

    def build(image: bytes) -> Dump:
        path = tmp_path / "dump"
        path.write_bytes(image)
        files.append(InputFile.open(str(path)))
        dump = open_dump(files[-1])
        assert dump.memory.present().total == MB
        return dump

    yield build
    for file in files:
        file.close()


def check(dump: Dump, cpus: range | list[int]) -> None:
    """These CPUs, every register."""
    assert [cpu.number for cpu in dump.cpu_registers] == list(cpus)
    for cpu in dump.cpu_registers:
        assert cpu.values == x86_registers(cpu.number)


@pytest.mark.parametrize("count", [1, 2, 256])
def test_every_register(dump_of, count):
    dump = dump_of(stream(dev.behind(machine(count))))
    check(dump, range(count))
    assert not dump.warnings
    assert (dump.e_machine, dump.kind.bits) == (62, 64)


def test_any_window(dump_of, monkeypatch):
    monkeypatch.setattr(migration_structs, "_WINDOW", 100)
    monkeypatch.setattr(migration_description, "_LOOKS", (10, 1 << 20))
    check(dump_of(stream(dev.behind(machine(3)))), range(3))


@pytest.mark.parametrize("word", [4, 8])
def test_32_bit_kernel(dump_of, word):
    """Of qemu-system-i386, and of qemu-system-x86_64 out of long mode."""
    told = x86_registers(0, 32)
    cpu = dev.x86_cpu(0, told, word=word, long_mode=False)
    dump = dump_of(stream(dev.behind([dev.timer(), cpu])))
    assert (dump.e_machine, dump.kind.bits) == (3, 64)
    (found,) = dump.cpu_registers
    if word == 4:
        told = {name: value for name, value in told.items() if name not in dev.GENERAL[8:]}
        told["kernel_gs_base"] = 0
    assert found.values == told


ARM = {
    "regs": list(range(0x100, 0x110)),
    "xregs": [0xFFFF000000000000 + n for n in range(32)],
    "pc": 0xFFFF800010000000,
}
SYSTEM = {dev.TTBR0_EL1: 0x41000000, dev.TTBR1_EL1: 0x42000000}


def arm_dump(dump_of, cpsr: int, kernel_stack: int = 0) -> Dump:
    records = mig.records("mach-virt.ram", [(at, None) for at in range(0, MB, 4096)])
    cpu = dev.arm_cpu(0, **ARM, cpsr=cpsr, stacks=[0, kernel_stack, 0, 0], system=SYSTEM)
    behind = dev.behind([dev.timer(), cpu])
    return dump_of(mig.Stream([records, b""], {"mach-virt.ram": MB}, "virt-7.2", behind=behind).build())


def test_arm64(dump_of):
    dump = arm_dump(dump_of, 0x600003C5)
    (cpu,) = dump.cpu_registers
    assert (dump.e_machine, dump.kind.bits) == (183, 64)
    assert cpu.values == {
        **{f"x{n}": ARM["xregs"][n] for n in range(31)},
        "sp": ARM["xregs"][31],
        "pc": ARM["pc"],
        "pstate": 0x600003C5,
        "ttbr0_el1": 0x41000000,
        "ttbr1_el1": 0x42000000,
    }


def test_arm64_in_a_32_bit_program(dump_of):
    dump = arm_dump(dump_of, 0x600F0010, 0xFFFF80000A000000)
    (cpu,) = dump.cpu_registers
    assert dump.e_machine == 183
    assert [cpu.values[name] for name in ("x0", "x14", "sp", "pc")] == [0x100, 0x10E, 0, 0x10F]


def test_arm(dump_of):
    dump = arm_dump(dump_of, 0x600F0013)
    (cpu,) = dump.cpu_registers
    assert (dump.e_machine, dump.kind.bits) == (40, 32)
    assert [cpu.values[name] for name in ("r0", "r12", "sp", "lr", "pc", "cpsr")] == [
        *(0x100, 0x10C, 0x10D, 0x10E, 0x10F, 0x600F0013),
    ]
    assert "r13" not in cpu.values


def changed(count: int, change) -> bytes:
    """A stream whose description was changed as a document."""
    devices = machine(count)
    document = json.loads(dev.description(devices))
    change(document["devices"])
    return stream(dev.behind(devices, json.dumps(document).encode()))


def test_cpus_behind_devices_of_unknown_length(dump_of):
    """Without fields, with wrong lengths, not described at all, and with something like a header in them."""
    like = dev.x86_cpu(0, {}).section(3)[:40]
    odd = dev.Device("odd", 0, [dev.Field({"name": "data", "type": "buffer", "size": 99}, bytes(99) + like)])
    devices = machine(2)
    for instead in (
        dev.Device("kvm-tpr-opt", 0, [dev.numbers("state", 4, 1, 2)], described=False),
        odd,
    ):
        text = dev.description([devices[0], instead, *devices[1:]])
        check(dump_of(stream(dev.behind([devices[0], instead, *devices[1:]], text))), range(2))
    undescribed = [devices[0], odd, *devices[1:4], odd, *devices[4:]]
    check(dump_of(stream(dev.behind(undescribed, dev.description(devices)))), range(2))


def test_described_in_another_order(dump_of):
    def swap(devices):
        devices[1:3] = [devices[2], devices[1]]

    check(dump_of(changed(2, swap)), range(2))


def test_two_cpus_with_one_number(dump_of):
    devices = [dev.timer(), *(dev.x86_cpu(0, x86_registers(n)) for n in range(2))]
    dump = dump_of(stream(dev.behind(devices)))
    check(dump, range(1))
    (warning,) = dump.warnings
    assert "CPU 0" in warning
    assert "same number" in warning


def cpu_fields(devices) -> list:
    return next(device for device in devices if device["name"] == "cpu")["fields"]


def field_of(devices, name: str) -> dict:
    return next(told for told in cpu_fields(devices) if told["name"] == name)


def deep(levels: int) -> dict:
    told: dict = {"name": "x", "type": "uint8", "size": 8}
    for _ in range(levels):
        told = {"name": "env.segs", "type": "struct", "size": 8, "struct": {"fields": [told]}}
    return told


LIES = {
    "count": lambda devices: field_of(devices, "env.regs").update(array_len=1 << 39),
    "huge": lambda devices: field_of(devices, "env.eip").update(size=1 << 40),
    "beyond": lambda devices: field_of(devices, "env.eip").update(size=1 << 400),
    "negative": lambda devices: field_of(devices, "env.eip").update(size=-8),
    "negative count": lambda devices: field_of(devices, "env.regs").update(array_len=-1),
    "fraction": lambda devices: field_of(devices, "env.eip").update(size=8.0),
    "truth": lambda devices: field_of(devices, "env.eip").update(size=True),
    "missing size": lambda devices: field_of(devices, "env.eip").pop("size"),
    "a byte less": lambda devices: field_of(devices, "env.eip").update(size=7),
    "text": lambda devices: field_of(devices, "env.eip").update(size="8"),
    "empty elements": lambda devices: cpu_fields(devices).insert(
        0, {"name": "env.regs", "array_len": 1 << 39, "size": 0, "type": "uint64"}
    ),
    "empty structures": lambda devices: cpu_fields(devices).insert(
        0,
        {
            "name": "env.segs",
            "array_len": 1 << 20,
            "size": 0,
            "struct": {"fields": [{"name": "a", "size": 0, "array_len": 1 << 20}]},
        },
    ),
    "larger parts": lambda devices: cpu_fields(devices).append(
        {"name": "env.segs", "size": 0, "struct": {"fields": [{"name": "a", "size": 8}]}}
    ),
    "deep": lambda devices: cpu_fields(devices).insert(0, deep(40)),
    "no fields": lambda devices: devices[2].pop("fields"),
    "fields of another kind": lambda devices: devices[2].update(fields={"a": 1}),
    "a field of another kind": lambda devices: cpu_fields(devices).append(7),
    "unnamed subsection": lambda devices: devices[2]["subsections"][0].pop("vmsd_name"),
    "another number": lambda devices: devices[2].update(instance_id=9),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(dump_of, lie):
    """The other CPU is read all the same, and nothing is taken from the wrong place."""
    dump = dump_of(changed(2, LIES[lie]))
    check(dump, [1])
    (warning,) = dump.warnings
    assert "left out" in warning


WHOLE = {
    "no devices": {"page_size": 4096},
    "devices of another kind": {"devices": 5},
    "a device of another kind": {"devices": [5]},
    "no name": {"devices": [{"instance_id": 0}]},
    "a long name": {"devices": [{"name": "x" * 256, "instance_id": 0}]},
    "no number": {"devices": [{"name": "cpu"}]},
    "a wide number": {"devices": [{"name": "cpu", "instance_id": 1 << 32}]},
    "no cpu": {"devices": [{"name": "timer", "instance_id": 0}]},
    "many": {"devices": [{"name": "cpu", "instance_id": n} for n in range(5000)]},
}


@pytest.mark.parametrize("what", WHOLE)
def test_descriptions_that_describe_nothing(dump_of, what):
    dump = dump_of(stream(dev.behind(machine(1), json.dumps(WHOLE[what]).encode())))
    assert not dump.cpu_registers
    (warning,) = dump.warnings
    assert "registers of the CPUs cannot be read" in warning


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"{" * 100,
        b'{"a":' * 100_000,
        b'{"devices":[' + b"[" * 100_000,
        b"{\xff}",
        b"{" + b"1," * (2 << 20),
    ],
)
def test_descriptions_that_are_no_json(dump_of, text):
    dump = dump_of(stream(dev.behind(machine(1), text)))
    assert not dump.cpu_registers
    assert len(dump.warnings) == 1


def test_numbers_no_one_could_convert(dump_of):
    """Python refuses integers of so many digits."""
    text = b'{"devices": [{"name": "cpu", "instance_id": ' + b"9" * 10_000 + b"}]}"
    assert not dump_of(stream(dev.behind(machine(1), text))).cpu_registers


def test_the_length_in_front_must_reach_to_the_end(dump_of):
    image = stream(dev.behind(machine(1)))
    text = dev.description(machine(1))
    at = len(image) - len(text) - 4
    for length in (0, len(text) - 1, len(text) + 1, 0xFFFFFFFF):
        dump = dump_of(image[:at] + struct.pack(">I", length) + image[at + 4 :])
        assert not dump.cpu_registers
        assert "description" in dump.warnings[0]


def test_unknown_kind_of_cpu(dump_of):
    cpu = dev.Device("cpu", 0, [dev.numbers("env.gpr", 8, *range(32)), dev.numbers("env.priv", 8, 1)])
    dump = dump_of(stream(dev.behind([dev.timer(), cpu])))
    assert not dump.cpu_registers
    assert "not known" in dump.warnings[0]


def test_registers_that_are_missing(dump_of):
    devices = machine(2)
    short = dev.Device("cpu", 1, [part for part in devices[5].fields if part.told["name"] != "env.eip"])
    dump = dump_of(stream(dev.behind([*devices[:5], short])))
    check(dump, [0])
    assert "1 CPUs are left out" in dump.warnings[0]


def test_cut_anywhere(dump_of):
    """Memory is whole, registers are all there or none, and then it is said."""
    image = stream(dev.behind(machine(1)))
    begin = image.index(b"\5timer") - 10
    for cut in sorted({*range(begin, len(image) - 1, 37), *range(begin, begin + 12), len(image) - 1}):
        dump = dump_of(image[:cut])
        assert not dump.cpu_registers
        assert len(dump.warnings) == 1


def test_flipped_bits_never_crash(dump_of):
    image = stream(dev.behind(machine(2)))
    begin = image.index(b"\5timer") - 10
    random = Random(SEED)
    outcomes = {0: 0, 1: 0, 2: 0}
    for _ in range(1500):
        damaged = bytearray(image)
        for _ in range(random.choice([1, 1, 1, 5])):
            damaged[random.randrange(begin, len(image))] ^= 1 << random.randrange(8)
        try:
            dump = dump_of(bytes(damaged))
        except KdumpError:
            continue
        outcomes[len(dump.cpu_registers)] += 1
    assert min(outcomes.values()) > 50


def test_searching_does_not_go_back(dump_of, monkeypatch):
    """Devices that are described and missing cost no more than one look at the stream."""
    read = []

    class Counting(qemu_devices._Reader):
        def _headers(self):
            read.append(self.cursor.at)
            return super()._headers()

    monkeypatch.setattr(qemu_devices, "_Reader", Counting)
    document = {"devices": [{"name": "cpu", "instance_id": n, "fields": []} for n in range(4000)]}
    dump = dump_of(stream(dev.behind(machine(1), json.dumps(document).encode())))
    assert not dump.cpu_registers
    assert len(read) == 1


def test_numbers_of_all_devices_together_are_limited(dump_of, monkeypatch):
    """Nothing in the file grows with what is described here."""
    monkeypatch.setattr(qemu_devices, "Budget", lambda: migration_description.Budget(3000))

    def many(devices):
        for device in devices:
            if device["name"] == "cpu":
                device["fields"].insert(0, {"name": "env.segs", "array_len": 900, "size": 0})

    dump = dump_of(changed(7, many))
    check(dump, range(3))
    assert "too many numbers" in dump.warnings[0]
    assert "1 other CPUs" in dump.warnings[-1]
