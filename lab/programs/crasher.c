/*
 * The last act of a lab guest: write down what this machine looks like, then crash it.
 *
 *	crasher SCENARIO PORT
 *
 * The truth (tasks, modules, iomem, symbols, kernel log, markers in user memory) goes to PORT, a
 * serial port of its own, so the kernel's console cannot mix in. Each section is one line
 * "@section NAME LENGTH" followed by exactly LENGTH bytes and a newline; "@end" closes the stream.
 * The task list is taken last, by the very process that then triggers the crash, because a list
 * taken by a shell also holds the short-lived programs that made it.
 *
 * SCENARIO "live" sleeps for ever instead of crashing; all others write 'c' to /proc/sysrq-trigger.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MARKER_DIR "/run/markers"
#define MODULE_FUNCTIONS 16
#define MODULE_OBJECTS 8

struct text {
	char *data;
	size_t used, room;
};

/* Found in the dump through this process' own page tables. */
static char own_marker[4096] __attribute__((aligned(4096)));

static const char *const wanted_symbols[] = {
	"_text", "_stext", "_etext", "_sdata", "_edata", "_end", "__bss_stop", "linux_banner", "init_task",
	"swapper_pg_dir", "init_top_pgt", "level4_kernel_pgt", "page_offset_base", "vmalloc_base",
	"vmemmap_base", "phys_base", "__per_cpu_offset", "__per_cpu_start", "__per_cpu_end", "runqueues",
	"current_task", "pcpu_hot", "const_current_task", "modules", "mem_section", "node_data",
	"init_uts_ns", "saved_command_line", "log_buf", "prb", "jiffies", "panic", "schedule",
	"sysrq_handle_crash", "write_sysrq_trigger", "__crash_kexec", "vmcoreinfo_data", "vmcoreinfo_note",
	"kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table", "kallsyms_token_index",
	"kallsyms_offsets", "kallsyms_relative_base", "__start_BTF", "__stop_BTF", "idle_task",
	/* of other architectures than x86 */
	"kimage_voffset", "memstart_addr", "vabits_actual", "idmap_pg_dir", "init_pg_dir", "initial_page_table",
	"mem_map", "contig_page_data", "high_memory", "max_low_pfn", "__pv_phys_pfn_offset", "__pv_offset",
	"pgd_current", "invalid_pmd_table", "invalid_pte_table", "kernelsp", "handle_sys", "__entry_text_start",
	"vectors", "cpu_switch_to", "__switch_to", "resume", "ret_from_fork", NULL
};

static void die(const char *what)
{
	fprintf(stderr, "LAB-FAILED crasher: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void add(struct text *text, const char *data, size_t size)
{
	if (text->used + size + 1 > text->room) {
		text->room = 2 * (text->used + size) + 65536;
		text->data = realloc(text->data, text->room);
		if (!text->data)
			die("memory");
	}
	memcpy(text->data + text->used, data, size);
	text->used += size;
	text->data[text->used] = 0;
}

__attribute__((format(printf, 2, 3))) static void addf(struct text *text, const char *format, ...)
{
	char line[1024];
	va_list args;
	int size;

	va_start(args, format);
	size = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (size > 0)
		add(text, line, size < (int)sizeof(line) ? (size_t)size : sizeof(line) - 1);
}

static int add_file(struct text *text, const char *path)
{
	char block[65536];
	ssize_t size;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return -1;
	while ((size = read(fd, block, sizeof(block))) > 0)
		add(text, block, size);
	close(fd);
	return 0;
}

static void send_all(int port, const char *data, size_t size)
{
	while (size) {
		ssize_t done = write(port, data, size);

		if (done < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			die("serial port");
		}
		data += done;
		size -= done;
	}
}

static void send_section(int port, const char *name, struct text *text)
{
	char head[128];
	int size = snprintf(head, sizeof(head), "@section %s %zu\n", name, text->used);

	send_all(port, head, size);
	send_all(port, text->data ? text->data : "", text->used);
	send_all(port, "\n", 1);
	text->used = 0;
}

static int is_wanted(const char *name)
{
	for (const char *const *wanted = wanted_symbols; *wanted; wanted++)
		if (!strcmp(name, *wanted))
			return 1;
	return 0;
}

/* The chosen symbols of the kernel, and of each module its first functions and objects. */
static void add_kallsyms(struct text *text)
{
	char line[1024], name[512], module[128], last_module[128] = "";
	int functions = 0, objects = 0;
	unsigned long long address;
	FILE *file = fopen("/proc/kallsyms", "r");
	char type;

	if (!file)
		die("/proc/kallsyms");
	while (fgets(line, sizeof(line), file)) {
		int fields = sscanf(line, "%llx %c %511s [%127[^]]]", &address, &type, name, module);

		if (fields == 3 && is_wanted(name))
			add(text, line, strlen(line));
		if (fields != 4)
			continue;
		if (strcmp(module, last_module)) {
			snprintf(last_module, sizeof(last_module), "%s", module);
			functions = objects = 0;
		}
		if ((tolower(type) == 't' && functions++ < MODULE_FUNCTIONS) ||
		    (strchr("dDbB", type) && objects++ < MODULE_OBJECTS))
			add(text, line, strlen(line));
	}
	fclose(file);
}

/* One line per section: module, section, address. */
static void add_module_sections(struct text *text)
{
	char path[1024], value[64];
	struct dirent *module, *section;
	DIR *modules = opendir("/sys/module"), *sections;
	FILE *file;

	if (!modules)
		return;
	while ((module = readdir(modules))) {
		snprintf(path, sizeof(path), "/sys/module/%s/sections", module->d_name);
		sections = opendir(path);
		if (!sections)
			continue;
		while ((section = readdir(sections))) {
			if (!strcmp(section->d_name, ".") || !strcmp(section->d_name, ".."))
				continue;
			snprintf(path, sizeof(path), "/sys/module/%s/sections/%s", module->d_name,
				 section->d_name);
			file = fopen(path, "r");
			if (!file)
				continue;
			if (fgets(value, sizeof(value), file))
				addf(text, "%s %s %s\n", module->d_name, section->d_name,
				     strtok(value, "\n"));
			fclose(file);
		}
		closedir(sections);
	}
	closedir(modules);
}

static void add_markers(struct text *text)
{
	char path[512];
	struct dirent *entry;
	DIR *dir = opendir(MARKER_DIR);

	snprintf(own_marker, sizeof(own_marker), "lab marker of crasher %d", getpid());
	addf(text, "%d crasher 0x%lx %s\n", getpid(), (unsigned long)own_marker, own_marker);
	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), MARKER_DIR "/%s", entry->d_name);
		add_file(text, path);
	}
	closedir(dir);
}

static void add_kernel_log(struct text *text)
{
	int room = klogctl(10 /* SYSLOG_ACTION_SIZE_BUFFER */, NULL, 0), size;
	char *log = room > 0 ? malloc(room) : NULL;

	if (!log)
		die("kernel log");
	size = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log, room);
	if (size < 0)
		die("kernel log");
	add(text, log, size);
	free(log);
}

static void add_task(struct text *text, const char *pid, const char *tid)
{
	struct text stat = { 0 }, comm = { 0 };
	char path[600], *end;

	snprintf(path, sizeof(path), "/proc/%s/task/%s/stat", pid, tid);
	if (add_file(&stat, path) < 0)
		goto out;
	snprintf(path, sizeof(path), "/proc/%s/task/%s/comm", pid, tid);
	if (add_file(&comm, path) < 0)
		goto out;
	end = strrchr(stat.data, ')'); /* a name may hold ')' and blanks */
	if (end && end[1] == ' ')
		addf(text, "%s %s %c %s", pid, tid, end[2], comm.data);
out:
	free(stat.data);
	free(comm.data);
}

static void add_task_id(struct text *text, const char *pid, const char *tid)
{
	addf(text, "%s %s\n", pid, tid);
}

static void for_each_task(struct text *text, void (*visit)(struct text *, const char *, const char *))
{
	char path[512];
	struct dirent *process, *thread;
	DIR *processes = opendir("/proc"), *threads;

	if (!processes)
		die("/proc");
	while ((process = readdir(processes))) {
		if (!isdigit((unsigned char)process->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task", process->d_name);
		threads = opendir(path);
		if (!threads)
			continue;
		while ((thread = readdir(threads)))
			if (isdigit((unsigned char)thread->d_name[0]))
				visit(text, process->d_name, thread->d_name);
		closedir(threads);
	}
	closedir(processes);
}

/*
 * Waits until no task has come or gone for a second (ten at most): kernel threads that still end after
 * the work at start would be in the truth and not in the dump of a live guest, which is stopped a
 * moment later.
 */
static void wait_for_quiet(void)
{
	struct text before = { 0 }, now = { 0 }, swap;
	int same = 0;

	for (int turn = 0; turn < 40 && same < 4; turn++) {
		usleep(250000);
		for_each_task(&now, add_task_id);
		same = before.data && !strcmp(before.data, now.data) ? same + 1 : 0;
		swap = before;
		before = now;
		now = swap;
		now.used = 0;
	}
	free(before.data);
	free(now.data);
}

static int open_port(const char *path)
{
	struct termios settings;
	int port = open(path, O_WRONLY | O_NOCTTY);

	if (port < 0 || tcgetattr(port, &settings))
		die(path);
	cfmakeraw(&settings);
	cfsetspeed(&settings, B115200);
	settings.c_cflag |= CLOCAL;
	if (tcsetattr(port, TCSANOW, &settings))
		die(path);
	return port;
}

/* The last CPU of those there are: then it is known which one panicked. */
static int pin_to_last_cpu(void)
{
	int cpu = (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("affinity");
	return cpu;
}

static void send_file(int port, const char *name, const char *path, struct text *text)
{
	if (add_file(text, path) < 0)
		die(path);
	send_section(port, name, text);
}

/* Started by mistake on a real machine it would take that down. */
static int is_lab_guest(void)
{
	struct text text = { 0 };
	int is_guest = !add_file(&text, "/proc/cmdline") && text.data && strstr(text.data, "lab.scenario=");

	free(text.data);
	return is_guest;
}

int main(int argc, char **argv)
{
	struct text text = { 0 };
	int port, trigger, cpu;

	if (argc != 3 || !is_lab_guest()) {
		fprintf(stderr, "usage: crasher SCENARIO PORT, in a guest of the lab only\n");
		return 2;
	}
	cpu = pin_to_last_cpu();
	port = open_port(argv[2]);
	send_all(port, "@begin\n", 7);
	send_file(port, "version", "/proc/version", &text);
	send_file(port, "release", "/proc/sys/kernel/osrelease", &text);
	send_file(port, "cmdline", "/proc/cmdline", &text);
	send_file(port, "iomem", "/proc/iomem", &text);
	add_kallsyms(&text);
	send_section(port, "kallsyms", &text);
	send_file(port, "modules", "/proc/modules", &text);
	add_module_sections(&text);
	send_section(port, "sections", &text);
	add_markers(&text);
	send_section(port, "markers", &text);
	send_file(port, "meminfo", "/proc/meminfo", &text);
	add_kernel_log(&text);
	send_section(port, "dmesg", &text);
	tcdrain(port);
	wait_for_quiet();

	send_file(port, "uptime", "/proc/uptime", &text);
	addf(&text, "%d %d %lld\n", getpid(), cpu, (long long)time(NULL));
	send_section(port, "crasher", &text);
	for_each_task(&text, add_task);
	send_section(port, "tasks", &text);
	send_all(port, "@end\n", 5);
	tcdrain(port);

	if (!strcmp(argv[1], "live"))
		for (;;)
			pause();
	trigger = open("/proc/sysrq-trigger", O_WRONLY);
	if (trigger < 0 || write(trigger, "c", 1) != 1)
		die("/proc/sysrq-trigger");
	die("still alive");
}
