# bash completion for kdump-elftool(1); written by tools/gen_completion.py
_kdump_elftool() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= known= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            -*) ;;
            *) command=${COMP_WORDS[i]}; break ;;
        esac
    done
    case $command in
        "")
            mapfile -t COMPREPLY < <(compgen -W "topelf tovelf addrandoff makedyn dumpmem virttophys vminfo info dmesg ps gdb mkvmlinux gdbinit -h --help -v --version" -- "$word")
            return ;;
        topelf)
            known="-h --help -i --oldmem --infile -v --vmcore -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel -l --level --format --compress -o --outfile -8 --m64 -4 --m32 --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -i | --oldmem | --infile) return ;;
                -v | --vmcore) return ;;
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                -l | --level) mapfile -t COMPREPLY < <(compgen -W "all inuse user cache kernel" -- "$word"); return ;;
                --format) mapfile -t COMPREPLY < <(compgen -W "elf kdump" -- "$word"); return ;;
                --compress) mapfile -t COMPREPLY < <(compgen -W "zstd zlib lzo snappy none" -- "$word"); return ;;
                -o | --outfile) return ;;
            esac
            ;;
        tovelf)
            known="-h --help -i --infile -v --vmcore -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel -l --level -p --procthreads -o --outfile --in-place --undo --gdb-script -8 --m64 -4 --m32 --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -i | --infile) return ;;
                -v | --vmcore) return ;;
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                -l | --level) mapfile -t COMPREPLY < <(compgen -W "all inuse user cache kernel" -- "$word"); return ;;
                -o | --outfile) return ;;
                --gdb-script) return ;;
            esac
            ;;
        addrandoff)
            known="-h --help -i --infile -v --vmcore -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel --undo --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -i | --infile) return ;;
                -v | --vmcore) return ;;
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
            esac
            ;;
        makedyn)
            known="-h --help -o --outfile --undo --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -o | --outfile) return ;;
            esac
            ;;
        dumpmem)
            known="-h --help -i --infile -v --vmcore -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel -p --is_physical --raw -o --outfile --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -i | --infile) return ;;
                -v | --vmcore) return ;;
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                -o | --outfile) return ;;
            esac
            ;;
        virttophys)
            known="-h --help -i --infile -v --vmcore -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -i | --infile) return ;;
                -v | --vmcore) return ;;
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
            esac
            ;;
        vminfo)
            known="-h --help -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel --keys --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                --keys) mapfile -t COMPREPLY < <(compgen -W "base qemu thread all" -- "$word"); return ;;
            esac
            ;;
        info)
            known="-h --help -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
            esac
            ;;
        dmesg)
            known="-h --help -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel -r --raw -x --decode -T --ctime -t --notime -l --level -f --facility --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                -l | --level) return ;;
                -f | --facility) return ;;
            esac
            ;;
        ps)
            known="-h --help -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
            esac
            ;;
        gdb)
            known="-h --help -I --intype --zero-excluded --arch --ram-base --cpu-regs -m --vmlinux -e --extravminfo -P --physpgd --kernel -l --level --no-procthreads --velf --in-place --modules --gdb --batch --print-script --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -m | --vmlinux) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                -l | --level) mapfile -t COMPREPLY < <(compgen -W "all inuse user cache kernel" -- "$word"); return ;;
                --velf) return ;;
                --modules) return ;;
                --gdb) return ;;
            esac
            ;;
        mkvmlinux)
            known="-h --help -I --intype --zero-excluded --arch --ram-base --cpu-regs -e --extravminfo -P --physpgd --kernel --from-image -o --outfile --link-addresses --btf --from-vmlinux --debuginfod --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
                -I | --intype) mapfile -t COMPREPLY < <(compgen -W "auto pelf kdump lime avml qemu vmware oldmem raw makedumpfile libvirt" -- "$word"); return ;;
                --arch) mapfile -t COMPREPLY < <(compgen -W "x86_64 i386 arm64 arm armeb mipsel mips mips64el mips64" -- "$word"); return ;;
                --ram-base) return ;;
                --cpu-regs) return ;;
                -e | --extravminfo) return ;;
                -P | --physpgd) return ;;
                --kernel) return ;;
                --from-image) return ;;
                -o | --outfile) return ;;
                --btf) return ;;
                --from-vmlinux) return ;;
            esac
            ;;
        gdbinit)
            known="-h --help --verbose -q --quiet -d --debug --json --strict --force --no-progress"
            case $before in
            esac
            ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$known" -- "$word")
    fi
}
complete -o default -o bashdefault -F _kdump_elftool kdump-elftool
